// The kernels of the `cpp` implementation: one pass over memory, computed in float32 and rounded once.
//
// cpp_build.py compiles this file once for each activation. It defines before it:
//   ACTIVATION      the device function below, `gelu`
//   MILLS_SHIFT, MILLS   the fit of the normal distribution's tail, from normal_tail.py
//
// A device function takes a float32 x and the activation's constants p, in the order of its record, and gives value and
// derivative; the compiler leaves out which of them is not used. Everything is plain arithmetic, so that the compiler
// writes it in the machine's vectors. Comparisons are written so that NaN comes through.

#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

struct Both {
    float value, slope;
};

INLINE float bits_to_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

INLINE uint32_t float_to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

INLINE float at_least(float x, float low) { return x < low ? low : x; }
INLINE float at_most(float x, float high) { return x > high ? high : x; }
INLINE float absolute(float x) { return __builtin_fabsf(x); }

// e^(x - less) for x in [-114, 50] and a tiny less, within 1 ulp where that is no subnormal number.
// x = n·ln(2) + r with |r| ≤ ln(2)/2, and e^r is a polynomial, its relative error 4e-9 (weighted least squares on
// Chebyshev's points).
INLINE float exp(float x, float less) {
    constexpr float to_integer = 12582912.f;  // 1.5 · 2^23: what is added to it is rounded to an integer
    float shifted = x * 1.44269504f + to_integer;
    float n = shifted - to_integer;
    float r = x - n * 0.693145752f;
    r = r - n * 1.42860677e-6f - less;
    float y = 1.38145394e-3f;
    y = y * r + 8.36874545e-3f;
    y = y * r + 4.16683890e-2f;
    y = y * r + 1.66665211e-1f;
    y = y * r + 4.99999940e-1f;
    y = y * r + 1.f;
    y = y * r + 1.f;
    constexpr uint32_t scale = 48;  // keeps 2^n a normal number
    return y * bits_to_float((float_to_bits(shifted) << 23) + ((127u + scale) << 23)) * 3.55271368e-15f;
}

// Activations. Most are x·F(x) with a distribution function F, F(-t) = 1 - F(t). Nothing small is taken from something
// large: x·F(x) = max(x, 0) - |x|·F(-|x|), whose negative side keeps its relative accuracy.

struct Tail {
    float probability, density;  // F(-t) and F'(t)
};

INLINE Both times_probability(float x, float t, Tail tail) {
    float slope = tail.probability - t * tail.density;
    return {at_least(x, 0.f) - t * tail.probability, x < 0.f ? slope : 1.f - slope};
}

// Φ(-t) is e^(-t²/2) times Mills' ratio, which is a polynomial of t/(MILLS_SHIFT + t).
INLINE Tail normal(float t) {
    constexpr float coefficients[] = MILLS;
    constexpr int degree = sizeof(coefficients) / sizeof(float) - 1;
    float v = t / (MILLS_SHIFT + t);
    float ratio = coefficients[degree];
#pragma GCC unroll 16
    for (int k = degree - 1; k >= 0; --k) ratio = ratio * v + coefficients[k];
    float square = t * t;
    float e = exp(-0.5f * square, 0.5f * __builtin_fmaf(t, t, -square));
    return {e * ratio, e * 0.398942280f};
}

constexpr float NORMAL_END = 15.f;  // beyond it t·Φ(-t) is 0 in float32

INLINE Both gelu(float x, const float*) {
    float t = at_most(absolute(x), NORMAL_END);
    return times_probability(x, t, normal(t));
}

INLINE Both gelu_clipped(float x, const float* p) {
    Both y = gelu(x, p);
    bool outside = y.value < p[0] || y.value > p[1];
    return {at_most(at_least(y.value, p[0]), p[1]), outside ? 0.f : y.slope};
}

// σ(-z), and σ'(z)·slope_z, for z in [0, 114].
INLINE Tail logistic(float z, float slope_z) {
    float e = exp(-z, 0.f);
    float probability = e / (e + 1.f);
    return {probability, probability * (1.f - probability) * slope_z};
}

INLINE Both gelu_tanh(float x, const float*) {  // ½(1 + tanh(u)) = σ(2u)
    constexpr float a = 1.59576912f, b = 0.0713548163f;  // 2·√(2/π), and that times 0.044715
    float t = at_most(absolute(x), 11.f);
    float square = t * t;
    return times_probability(x, t, logistic(t * (a + b * square), a + 3.f * b * square));
}

INLINE Both swish(float x, float beta) {
    float t = at_most(absolute(x), 112.f / beta);
    return times_probability(x, t, logistic(t * beta, beta));
}

INLINE Both silu(float x, const float*) { return swish(x, 1.f); }
INLINE Both quick_gelu(float x, const float*) { return swish(x, 1.702f); }
INLINE Both relu(float x, const float*) { return {at_least(x, 0.f), x <= 0.f ? 0.f : 1.f}; }

INLINE Both relu_squared(float x, const float*) {
    float positive = at_least(x, 0.f);
    return {positive * positive, positive * 2.f};
}

// tanh(ln(1 + e)) = n/(n + 2) with e = e^x and n = e(e + 2): 1 in float32 from 20 on. The derivative is eω/(n + 2)² with
// ω = 4(x + 1) + e(4x + 6) + 4e² + e³.
INLINE Both mish(float x, const float*) {
    float c = at_most(at_least(x, -112.f), 20.f);
    float e = exp(c, 0.f);
    float n = e * (e + 2.f);
    float omega = ((e + 4.f) * e + (c * 4.f + 6.f)) * e + (c + 1.f) * 4.f;
    float rest = (x > 0.f ? c * -2.f : c * n) / (n + 2.f);
    return {at_least(x, 0.f) + rest, e / (n + 2.f) * (omega / (n + 2.f))};
}

INLINE Both laplace(float x, const float* p) {
    float z = (x - p[0]) * (1.f / p[1]);
    Tail tail = normal(at_most(absolute(z), NORMAL_END));
    return {z < 0.f ? tail.probability : 1.f - tail.probability, tail.density * (1.f / p[1])};
}

// Memory. Tensors are rows of columns that lie side by side; one row where they are dense. Half-precision numbers are
// widened to float32 a block at a time, in the first cache.

constexpr int64_t BLOCK = 256;

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

INLINE float widened(bfloat16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

INLINE bfloat16 narrowed_bf16(float x) {  // to the nearest, ties to even
    uint32_t bits = float_to_bits(x);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return {static_cast<uint16_t>(x == x ? rounded : 0x7FC0)};
}

INLINE void load(const bfloat16* from, float* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = widened(from[i]);
}

INLINE void store(const float* from, bfloat16* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = narrowed_bf16(from[i]);
}

#if defined(__F16C__)
INLINE float widened(float16 x) { return _cvtsh_ss(x.bits); }
INLINE uint16_t narrowed_fp16(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#else
INLINE float widened(float16 x) {
    _Float16 y;
    std::memcpy(&y, &x.bits, 2);
    return static_cast<float>(y);
}
INLINE uint16_t narrowed_fp16(float x) {
    _Float16 y = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &y, 2);
    return bits;
}
#endif

INLINE void load(const float16* from, float* to, int64_t count) {
    int64_t i = 0;
#if defined(__F16C__) && defined(__AVX__)
    for (; i + 8 <= count; i += 8) {
        __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(eight));
    }
#endif
    for (; i < count; ++i) to[i] = widened(from[i]);
}

INLINE void store(const float* from, float16* to, int64_t count) {
    int64_t i = 0;
#if defined(__F16C__) && defined(__AVX__)
    for (; i + 8 <= count; i += 8) {
        __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), eight);
    }
#endif
    for (; i < count; ++i) to[i].bits = narrowed_fp16(from[i]);
}

// float32 is read and written where it lies; the others by way of a buffer.
INLINE const float* opened(const float* from, float*, int64_t) { return from; }
INLINE float* room(float* to, float*) { return to; }
INLINE void closed(const float*, float*, int64_t) {}

template <class T>
INLINE const float* opened(const T* from, float* buffer, int64_t count) {
    load(from, buffer, count);
    return buffer;
}
template <class T>
INLINE float* room(T*, float* buffer) {
    return buffer;
}
template <class T>
INLINE void closed(const float* buffer, T* to, int64_t count) {
    store(buffer, to, count);
}

struct Rows {
    void* data;
    int64_t stride;  // in elements, from one row to the next
};

template <class T>
INLINE T* at(const Rows& rows, int64_t row, int64_t column) {
    return static_cast<T*>(rows.data) + row * rows.stride + column;
}

// body(row, column, count) for every block of the rows, the threads sharing them out.
template <class Body>
INLINE void each_block(int64_t rows, int64_t columns, int threads, const Body& body) {
    const int64_t blocks = (columns + BLOCK - 1) / BLOCK, total = rows * blocks;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t index = 0; index < total; ++index) {
        const int64_t row = index / blocks, column = (index - row * blocks) * BLOCK;
        body(row, column, columns - column < BLOCK ? columns - column : BLOCK);
    }
}

template <class T>
static void forward(const Rows* r, int64_t rows, int64_t columns, const float* p, int threads) {
    each_block(rows, columns, threads, [=](int64_t row, int64_t column, int64_t count) {
        alignas(64) float in[BLOCK], out[BLOCK];
        const float* x = opened(at<T>(r[0], row, column), in, count);
        float* y = room(at<T>(r[1], row, column), out);
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) y[i] = ACTIVATION(x[i], p).value;
        closed(y, at<T>(r[1], row, column), count);
    });
}

// The gradient. Where the slope is 0 there is none, whatever comes from behind: so it is with torch's ReLU and clamp.
INLINE float along(float slope, float dy) { return slope == 0.f ? 0.f : dy * slope; }

template <class T>
static void backward(const Rows* r, int64_t rows, int64_t columns, const float* p, int threads) {
    each_block(rows, columns, threads, [=](int64_t row, int64_t column, int64_t count) {
        alignas(64) float in[BLOCK], gradient[BLOCK], out[BLOCK];
        const float* x = opened(at<T>(r[0], row, column), in, count);
        const float* dy = opened(at<T>(r[1], row, column), gradient, count);
        float* dx = room(at<T>(r[2], row, column), out);
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) dx[i] = along(ACTIVATION(x[i], p).slope, dy[i]);
        closed(dx, at<T>(r[2], row, column), count);
    });
}

template <class T>
static void gated_forward(const Rows* r, int64_t rows, int64_t columns, const float* p, int threads) {
    each_block(rows, columns, threads, [=](int64_t row, int64_t column, int64_t count) {
        alignas(64) float in[BLOCK], other[BLOCK], out[BLOCK];
        const float* gate = opened(at<T>(r[0], row, column), in, count);
        const float* up = opened(at<T>(r[1], row, column), other, count);
        float* y = room(at<T>(r[2], row, column), out);
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) y[i] = ACTIVATION(gate[i], p).value * up[i];
        closed(y, at<T>(r[2], row, column), count);
    });
}

template <class T>
static void gated_backward(const Rows* r, int64_t rows, int64_t columns, const float* p, int threads) {
    each_block(rows, columns, threads, [=](int64_t row, int64_t column, int64_t count) {
        alignas(64) float in[BLOCK], other[BLOCK], gradient[BLOCK], out[BLOCK], out_up[BLOCK];
        const float* gate = opened(at<T>(r[0], row, column), in, count);
        const float* up = opened(at<T>(r[1], row, column), other, count);
        const float* dy = opened(at<T>(r[2], row, column), gradient, count);
        float* dgate = room(at<T>(r[3], row, column), out);
        float* dup = room(at<T>(r[4], row, column), out_up);
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
            Both y = ACTIVATION(gate[i], p);
            dgate[i] = along(y.slope, dy[i] * up[i]);
            dup[i] = dy[i] * y.value;
        }
        closed(dgate, at<T>(r[3], row, column), count);
        closed(dup, at<T>(r[4], row, column), count);
    });
}

// forms: 0 forward (x, y), 1 backward (x, dy, dx), 2 gated forward (gate, up, y), 3 gated backward (gate, up, dy, dgate,
// dup). dtypes: 0 float32, 1 bfloat16, 2 float16.
template <class T>
static void run(int form, const Rows* r, int64_t rows, int64_t columns, const float* p, int threads) {
    switch (form) {
        case 0: return forward<T>(r, rows, columns, p, threads);
        case 1: return backward<T>(r, rows, columns, p, threads);
        case 2: return gated_forward<T>(r, rows, columns, p, threads);
        case 3: return gated_backward<T>(r, rows, columns, p, threads);
    }
}

extern "C" void hf_gelu_patch_run(int form, int dtype, int64_t rows, int64_t columns, const Rows* tensors,
                                  const float* constants, int threads) {
    switch (dtype) {
        case 0: return run<float>(form, tensors, rows, columns, constants, threads);
        case 1: return run<bfloat16>(form, tensors, rows, columns, constants, threads);
        case 2: return run<float16>(form, tensors, rows, columns, constants, threads);
    }
}
