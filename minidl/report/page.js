(function () {
  "use strict";
  var key = "minidl:" + location.pathname, kept = {};
  try { kept = JSON.parse(sessionStorage.getItem(key)) || {}; } catch (error) { /* a browser that keeps nothing for files */ }
  function all(selector) { return Array.prototype.slice.call(document.querySelectorAll(selector)); }

  // What was chosen, opened and scrolled to is as it was before the page was loaded again.
  all("details").forEach(function (each, i) { if (kept.open && i in kept.open) each.open = kept.open[i]; });
  all('input[name="over"]').forEach(function (each) { if (kept.over) each.checked = each.value === kept.over; });
  if (kept.over && !document.querySelector('input[name="over"]:checked')) {
    var first = document.querySelector('input[name="over"]');
    if (first) first.checked = true;
  }
  if (kept.y) window.scrollTo(0, kept.y);
  function keep() {
    var over = document.querySelector('input[name="over"]:checked');
    var now = { open: all("details").map(function (each) { return each.open; }), over: over && over.value, y: window.scrollY };
    try { sessionStorage.setItem(key, JSON.stringify(now)); } catch (error) { /* as above */ }
  }
  window.addEventListener("pagehide", keep);

  all("button[data-copy]").forEach(function (button) {
    var source = document.getElementById(button.dataset.copy);
    button.hidden = false;
    button.addEventListener("click", function () {
      function done(word) { button.textContent = word; setTimeout(function () { button.textContent = "Copy"; }, 1500); }
      function byHand() {
        var range = document.createRange();
        range.selectNodeContents(source);
        var selection = window.getSelection();
        selection.removeAllRanges();
        selection.addRange(range);
        var worked = false;
        try { worked = document.execCommand("copy"); } catch (error) { worked = false; }
        if (worked) selection.removeAllRanges();
        done(worked ? "Copied" : "Selected");
      }
      if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(source.textContent).then(function () { done("Copied"); }, byHand);
      else byHand();
    });
  });

  // While the run goes on the page is loaded again and again, but not under the hands of who selects something in it.
  var refresh = Number(document.body.dataset.refresh);
  if (!refresh) return;
  var quiet = Date.now() / 1000 - Number(document.body.dataset.seen), silent = document.getElementById("silent");
  if (silent && quiet > 120) {
    silent.hidden = false;
    silent.querySelector("span").textContent = Math.round(quiet / 60);
  }
  function look() {
    if (document.hidden || String(window.getSelection())) return;
    keep();
    location.reload();
  }
  setInterval(look, 1000 * (quiet > 120 ? 30 : refresh));
  document.addEventListener("visibilitychange", look);
}());
