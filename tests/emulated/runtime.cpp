// The emulated GPU: runs the blocks of a kernel one after the other, and the threads of a block in turn, each on a stack of its own.
//
// A thread runs until it waits for others: at a barrier of the block, or for the other lanes of its warp. Whoever waits for threads that
// will never come is an error, as are accesses that fault and what the compiler's checks find (overflows, misaligned vectors, places
// beyond an array of known length). Memory that nobody has written holds ones in all bits, which are NaN.

#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include <link.h>
#include <sys/mman.h>

struct Dim { unsigned x, y, z; };
typedef void (*Call)(void**);

enum { MOST = 1024, STACK = 1 << 17, SHARED = 227 * 1024, RED = 4096 };
enum State { READY, BARRIER, WARP, DONE };
enum Collective { SYNC, SHUFFLE, VOTE, MMA_F16, MMA_BF16, MMA_TF32, MATRICES };

struct Shuffle { unsigned long long bits; int source; };
struct Mma { float* d; const unsigned *a, *b; };
struct Matrices { unsigned* r; const void* row; };

#ifdef __x86_64__
typedef void* Context;
extern "C" void emulated_switch(Context* from, Context to);
asm(R"(
    .text
    .globl emulated_switch
    .hidden emulated_switch
    .type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulated_switch, .-emulated_switch
)");
static void change(Context& from, Context& to) { emulated_switch(&from, to); }
static void prepare(Context& context, char* stack, void (*start)()) {
    void** top = (void**)(stack + STACK) - 2;           // aligned as after a call
    top[0] = (void*)start;
    context = top - 6;
    memset(context, 0, 6 * sizeof(void*));
}
#else
#include <ucontext.h>
typedef ucontext_t Context;
static void change(Context& from, Context& to) { swapcontext(&from, &to); }
static void prepare(Context& context, char* stack, void (*start)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, start, 0);
}
#endif

struct Thread {
    Context context;
    State state;
    Dim index;
    int line, how, what;                                // where it waits, and for what
    int* value;
    unsigned mask;
    void* mine;
};

extern "C" {
Dim emulated_thread, emulated_block, emulated_threads, emulated_blocks;
alignas(256) char emulated_shared[SHARED + RED];
}

static Thread threads[MOST];
static char* stacks;
static Context scheduler;
static int count, current;
static Call call;
static void** arguments;
static std::string message;
static sigjmp_buf escape;

static std::string text(const char* format, ...) {
    char buffer[600];
    va_list args;
    va_start(args, format);
    vsnprintf(buffer, sizeof buffer, format, args);
    va_end(args);
    return buffer;
}

static std::string place() {
    const Dim &b = emulated_block, &t = emulated_thread;
    return text("block (%u, %u, %u), thread (%u, %u, %u): ", b.x, b.y, b.z, t.x, t.y, t.z);
}

extern "C" [[noreturn]] void emulated_error(const char* what) {
    message = place() + what;
    siglongjmp(escape, 1);
}

static void fail(const std::string& what) { emulated_error(what.c_str()); }

static void wait() {
    Thread& me = threads[current];
    change(me.context, scheduler);
}

static void start() {
    call(arguments);
    threads[current].state = DONE;
    wait();
}

extern "C" int emulated_lane() { return current % 32; }

extern "C" void emulated_barrier(int line, int how, int* value) {
    Thread& me = threads[current];
    me.state = BARRIER, me.line = line, me.how = how, me.value = value;
    wait();
}

static float half(unsigned short bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float x = exponent == 31 ? (fraction ? NAN : INFINITY) : ldexpf(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
    return bits & 0x8000 ? -x : x;
}

static float number(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static float part(int what, const unsigned* words, int word, int upper) {      // one number of a fragment
    if (what == MMA_TF32) return number(words[word] & 0xffffe000u);
    unsigned bits = words[word] >> 16 * upper & 0xffff;
    return what == MMA_F16 ? half((unsigned short)bits) : number(bits << 16);
}

static void multiply(int what, Thread* warp) {
    int depth = what == MMA_TF32 ? 8 : 16;
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Mma& mine = *(Mma*)warp[lane].mine;
        int g = lane / 4, t = lane % 4;
        if (what == MMA_TF32) {
            for (int i = 0; i < 4; i++) a[g + i % 2 * 8][t + i / 2 * 4] = part(what, mine.a, i, 0);
            for (int i = 0; i < 2; i++) b[t + i * 4][g] = part(what, mine.b, i, 0);
        } else {
            for (int i = 0; i < 8; i++) a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = part(what, mine.a, i / 2, i % 2);
            for (int i = 0; i < 4; i++) b[2 * t + i % 2 + i / 2 * 8][g] = part(what, mine.b, i / 2, i % 2);
        }
    }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            float& d = ((Mma*)warp[lane].mine)->d[i];
            for (int k = 0; k < depth; k++) d += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
        }
}

static void load(Thread* warp) {
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            for (int upper = 0; upper < 2; upper++) {
                int row = lane / 4, column = lane % 4 * 2 + upper;
                const void* from = ((Matrices*)warp[8 * i + row].mine)->row;
                if ((size_t)from % 16) fail("load_matrices: a row that does not begin at a multiple of 16 bytes");
                memcpy((char*)(((Matrices*)warp[lane].mine)->r + i) + 2 * upper, (const char*)from + 2 * column, 2);
            }
}

static void together(int what, unsigned mask, Thread* warp) {
    if (what >= MMA_F16 && mask != 0xffffffffu) fail("a product by a warp of which some lanes are missing");
    if (what == SHUFFLE) {
        unsigned long long bits[32];
        for (int lane = 0; lane < 32; lane++) bits[lane] = mask >> lane & 1 ? ((Shuffle*)warp[lane].mine)->bits : ~0ull;
        for (int lane = 0; lane < 32; lane++)
            if (mask >> lane & 1) ((Shuffle*)warp[lane].mine)->bits = bits[((Shuffle*)warp[lane].mine)->source & 31];
    } else if (what == VOTE) {
        unsigned votes = 0;
        for (int lane = 0; lane < 32; lane++)
            if (mask >> lane & 1) votes |= *(unsigned*)warp[lane].mine << lane;
        for (int lane = 0; lane < 32; lane++)
            if (mask >> lane & 1) *(unsigned*)warp[lane].mine = votes;
    } else if (what == MMA_F16 || what == MMA_BF16 || what == MMA_TF32)
        multiply(what, warp);
    else if (what == MATRICES)
        load(warp);
}

extern "C" void emulated_warp(unsigned mask, int what, void* mine, int line) {
    Thread &me = threads[current], *warp = threads + current / 32 * 32;
    if (!(mask >> current % 32 & 1)) fail(text("line %d: lane %d is not in the mask %#x that it gives", line, current % 32, mask));
    me.state = WARP, me.mask = mask, me.what = what, me.mine = mine, me.line = line;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) {
            const Thread& other = warp[lane];
            if (current / 32 * 32 + lane >= count) fail(text("line %d: lane %d of the mask %#x is beyond the block", line, lane, mask));
            if (other.state == DONE) fail(text("line %d: waits for lane %d, which has returned", line, lane));
            if (other.state != WARP) return wait();
            if (other.what != what || other.mask != mask)
                fail(text("line %d and line %d: lanes of one mask do different things (masks %#x, %#x)", line, other.line, mask, other.mask));
        }
    together(what, mask, warp);
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) warp[lane].state = READY;
}

// What the compiler's checks (-fsanitize) call: each is given where it was, first of all

struct Where { const char* file; unsigned line, column; };
#define CHECK(name, what) \
    extern "C" void __ubsan_handle_##name(Where* where, ...) { fail(text("%s, line %u: " what, where->file, where->line)); }
CHECK(add_overflow, "an integer sum overflows")
CHECK(sub_overflow, "an integer difference overflows")
CHECK(mul_overflow, "an integer product overflows")
CHECK(negate_overflow, "an integer overflows")
CHECK(divrem_overflow, "an integer is divided by zero")
CHECK(shift_out_of_bounds, "a shift by more bits than there are, or out of a signed number")
CHECK(out_of_bounds, "a place beyond an array")
CHECK(type_mismatch_v1, "a misaligned address")

// Arrays: round each there is a red zone that nobody may write to

struct Range { size_t used, size; };
static std::map<char*, Range> ranges;
enum { ZONE = 512 };

extern "C" void emulated_watch(char* start, size_t used, size_t size) {
    ranges[start] = {used, size};
    memset(start - ZONE, 0xff, size + 2 * ZONE);
}

extern "C" void emulated_forget(char* start) { ranges.erase(start); }

extern "C" size_t emulated_room(char* place) {                 // how many bytes of an array follow; 0 for a place outside all arrays
    auto next = ranges.upper_bound(place);
    if (next == ranges.begin()) return 0;
    auto [start, range] = *--next;
    return place < start + range.used ? start + range.used - place : 0;
}

static bool written(char* from, size_t size) {
    bool any = false;
    for (size_t i = 0; i < size; i++) any |= from[i] != (char)0xff;
    if (any) memset(from, 0xff, size);
    return any;
}

extern "C" const char* emulated_edges() {                      // what has been written to beside an array, or null
    message.clear();
    for (auto [start, range] : ranges) {
        if (written(start - ZONE, ZONE)) message = text("an array of %zu bytes is written to before its beginning", range.used);
        if (written(start + range.used, range.size - range.used + ZONE))
            message = range.used ? text("an array of %zu bytes is written to beyond its end", range.used) : "memory is written to that was given back";
    }
    return message.empty() ? nullptr : message.c_str();
}

// A launch

static bool complete() {                                // whether all threads wait at one barrier
    const Thread& first = threads[0];
    for (int i = 0; i < count; i++)
        if (threads[i].state != BARRIER || threads[i].line != first.line || threads[i].how != first.how) return false;
    int sum = 0;
    for (int i = 0; i < count && first.how; i++) sum += *threads[i].value;
    for (int i = 0; i < count; i++) {
        if (first.how) *threads[i].value = first.how == 1 ? sum : first.how == 2 ? sum == count : sum > 0;
        threads[i].state = READY;
    }
    return true;
}

static std::string stuck() {
    std::string all;
    for (int i = 0; i < count;) {
        int j = i;
        while (j < count && threads[j].state == threads[i].state && (threads[i].state == DONE || threads[j].line == threads[i].line)) j++;
        all += text("%sthreads %d to %d ", all.empty() ? "" : "; ", i, j - 1);
        all += threads[i].state == DONE ? "have returned" :
            text("wait at line %d for %s", threads[i].line, threads[i].state == BARRIER ? "the block" : "their warp");
        if (all.size() > 400) return all + "; ...";
        i = j;
    }
    return all;
}

static void run_block(size_t dynamic, void* fixed, size_t fixed_size, bool backwards) {
    memset(fixed, 0xff, fixed_size);
    memset(emulated_shared, 0xff, dynamic + RED);
    for (int i = 0; i < count; i++) {
        Thread& t = threads[i];
        t.state = READY;
        t.index = {i % emulated_threads.x, i / emulated_threads.x % emulated_threads.y, i / emulated_threads.x / emulated_threads.y};
        prepare(t.context, stacks + (size_t)i * STACK, start);
    }
    for (int left = count; left;) {
        bool any = false;
        for (int j = 0; j < count; j++) {
            current = backwards ? count - 1 - j : j;
            Thread& t = threads[current];
            if (t.state != READY) continue;
            any = true;
            emulated_thread = t.index;
            change(scheduler, t.context);
            if (t.state == DONE) left--;
        }
        if (left && !any && !complete()) {
            emulated_thread = {0, 0, 0};
            fail("threads wait for others that never come: " + stuck());
        }
    }
    for (int i = 0; i < RED; i++)
        if (emulated_shared[dynamic + i] != (char)0xff) fail(text("shared memory is written to beyond its end: byte %d of %zu", (int)dynamic + i, dynamic));
}

static void faulted(int which, siginfo_t* about, void*) {
    message = place() + text("%s at address %p", which == SIGFPE ? "a division faults" : "an access faults", about->si_addr);
    siglongjmp(escape, 1);
}

struct Shared { const void* mark; void* start; size_t size; };

static int look(dl_phdr_info* info, size_t, void* given) {      // the shared memory of a file is its thread-local storage
    Shared& shared = *(Shared*)given;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr)& header = info->dlpi_phdr[i];
        char* start = (char*)info->dlpi_tls_data;
        if (header.p_type == PT_TLS && start && shared.mark >= start && shared.mark < start + header.p_memsz) {
            shared.start = start, shared.size = header.p_memsz;
            return 1;
        }
    }
    return 0;
}

extern "C" const char* emulated_launch(Call kernel, void** args, const unsigned* grid, const unsigned* block, size_t dynamic, void* (*mark)(),
                                       int backwards) {
    if (!stacks) stacks = (char*)mmap(nullptr, (size_t)MOST * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    Shared shared = {mark(), nullptr, 0};
    dl_iterate_phdr(look, &shared);
    call = kernel, arguments = args;
    emulated_blocks = {grid[0], grid[1], grid[2]}, emulated_threads = {block[0], block[1], block[2]};
    emulated_block = emulated_thread = {0, 0, 0};
    count = (int)(block[0] * block[1] * block[2]);
    size_t blocks = (size_t)grid[0] * grid[1] * grid[2];

    static char signals_stack[1 << 16];
    stack_t alternative = {}, before;
    alternative.ss_sp = signals_stack, alternative.ss_size = sizeof signals_stack;
    sigaltstack(&alternative, &before);
    const int signals[] = {SIGSEGV, SIGBUS, SIGFPE};
    struct sigaction action = {}, old[3];
    action.sa_sigaction = faulted, action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; i++) sigaction(signals[i], &action, old + i);

    message.clear();
    if (!sigsetjmp(escape, 1))
        for (size_t i = 0; i < blocks; i++) {
            size_t n = backwards ? blocks - 1 - i : i;
            emulated_block = {(unsigned)(n % grid[0]), (unsigned)(n / grid[0] % grid[1]), (unsigned)(n / grid[0] / grid[1])};
            run_block(dynamic, shared.start, shared.size, backwards);
        }
    for (int i = 0; i < 3; i++) sigaction(signals[i], old + i, nullptr);
    sigaltstack(&before, nullptr);
    if (message.empty()) emulated_edges();
    return message.empty() ? nullptr : message.c_str();
}
