// What Python must know of a kernel to call it: how many parameters it has, and of which types. kernels.py puts this after the source.

struct Parameter { char kind; int size; char under; int under_size; };                  // under: what a pointer points to

template <typename V> struct Kind { static const char is = 's'; static const int size = sizeof(V); };
template <> struct Kind<void> { static const char is = 'v'; static const int size = 0; };
template <> struct Kind<device::half_t> { static const char is = 'h'; static const int size = 2; };
template <> struct Kind<device::bfloat_t> { static const char is = 'b'; static const int size = 2; };
#define KIND(V, letter) template <> struct Kind<V> { static const char is = letter; static const int size = sizeof(V); };
KIND(float, 'f') KIND(double, 'f') KIND(bool, 'i') KIND(char, 'i') KIND(signed char, 'i') KIND(unsigned char, 'i') KIND(short, 'i')
KIND(unsigned short, 'i') KIND(int, 'i') KIND(unsigned, 'i') KIND(long, 'i') KIND(unsigned long, 'i') KIND(long long, 'i')
KIND(unsigned long long, 'i')

template <typename V> struct Bare { typedef V type; };
template <typename V> struct Bare<const V> { typedef V type; };
template <typename V> struct Bare<volatile V> { typedef V type; };

template <typename V> struct Described { static constexpr Parameter is = {Kind<V>::is, sizeof(V), 0, 0}; };
template <typename V> struct Described<V*> {
    typedef Kind<typename Bare<V>::type> Under;
    static constexpr Parameter is = {'p', sizeof(V*), Under::is, Under::size};
};

template <int...> struct Numbers {};

template <auto F> struct Kernel;
template <typename... P, void (*F)(P...)> struct Kernel<F> {
    static constexpr int count = sizeof...(P);
    static constexpr Parameter parameters[] = {Described<P>::is..., Parameter{}};
    template <int... I> static void with(void** args, Numbers<I...>) { F(*(P*)args[I]...); }
    static void call(void** args) { with(args, Numbers<__integer_pack(sizeof...(P))...>()); }
};

struct About { void (*call)(void**); int count; const Parameter* parameters; int most; };

#define KERNEL(name) \
    extern "C" __attribute__((visibility("default"))) const About about_##name = { \
        Kernel<device::name>::call, Kernel<device::name>::count, Kernel<device::name>::parameters, device::most_##name};

static __thread char mark[16];
extern "C" __attribute__((visibility("default"))) void* shared_mark() { return mark; }      // a place in this file's shared memory
