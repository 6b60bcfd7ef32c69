/* The Net on a CPU: training steps and predictions, without a library.
 *
 * Sixteen images go through the Net side by side, one in each lane of a vector, so every product is
 * a weight times sixteen values and nothing has to be rearranged. What a vector is made of (one
 * register of AVX-512, two of AVX2, four of NEON) changes the time and not one bit: each sum has
 * one order, each multiply-add is fused, and exp and log are written out. Threads change nothing
 * either: they share out results, never the terms of a sum.
 *
 * A chunk is sixteen images; activations are [channel][y][x][16]. Weights are torch's own arrays,
 * [out][in][ky][kx] and [out][in], one after the other in one block that `layout` describes.
 */

#include <stdint.h>

typedef float lanes __attribute__((vector_size(64)));
typedef float lanes_anywhere __attribute__((vector_size(64), aligned(4)));
typedef float half __attribute__((vector_size(32)));
typedef float quarter __attribute__((vector_size(16)));
typedef int32_t choices __attribute__((vector_size(64)));
typedef int8_t places __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("clang loop unroll(full)")
#define EACH(i, n) UNROLLED for (int i = 0; i < (n); i++)

/* How many sums go on at once: as many as the registers hold. */
#if defined(__AVX512F__) || defined(MANY_REGISTERS)
#define MANY
enum { WIDE = 4, COLUMNS = 2, PIECES = 1 };
typedef lanes piece;
#else
enum { WIDE = 1, COLUMNS = 1, PIECES = 2 };
typedef half piece;
#endif

#if defined(__x86_64__)
#define RELAX __builtin_ia32_pause()
#else
#define RELAX __asm__ volatile("yield")
#endif

enum {
    LANES = 16, ROWS = 5, PANEL = 16, PANEL_ROWS = 4, GROUP = 4, SLOTS = 16, SPINS = 12000,
    KERNEL = 5, TAPS = KERNEL * KERNEL, WINDOW = 4, NOWHERE = WINDOW,
    SIDE = 28, CONV1 = 24, POOL1 = 12, CONV2 = 8, POOL2 = 4,
    CHANNELS1 = 20, CHANNELS2 = 50, FEATURES = CHANNELS2 * POOL2 * POOL2,
    HIDDEN = 500, HIDDEN_PADDED = 512,
};

typedef struct { /* what is kept of sixteen images between forward and backward */
    lanes pixels[SIDE * SIDE];
    lanes hidden1[CHANNELS1 * POOL1 * POOL1];
    lanes features[FEATURES], features_back[FEATURES];
    lanes hidden[HIDDEN], hidden_back[HIDDEN];
    float features_by_image[LANES][FEATURES];
    float hidden_by_image[LANES][HIDDEN_PADDED];
    places places1[CHANNELS1 * POOL1 * POOL1], places2[FEATURES]; /* of the maxima */
    choices label;
    double loss;
    int64_t correct, count;
} chunk;

typedef struct { /* a thread's own */
    lanes conv2_back[CHANNELS2 * CONV2 * CONV2];
    lanes conv1_back[2 * CONV1 * CONV1];
    lanes hidden1_back[CHANNELS1 * POOL1 * POOL1];
    lanes panel[HIDDEN]; /* sixteen columns of the weights of the first linear layer */
} scratch;

typedef struct { /* where each parameter begins in a block of parameters, in floats */
    int64_t conv1, bias1, conv2, bias2, fc1, bias3, fc2, bias4, size;
} layout;

typedef struct { /* a step's numbers, as torch.optim.SGD and AdamW have them */
    float rate, keep, second_scale; /* learning rate; 1 - rate * decay; 1 / sqrt(1 - beta2^t) */
} coefficients;

typedef struct {
    const uint8_t *images; /* [N][SIDE][SIDE] */
    const int64_t *labels, *order; /* [N], [count] */
    const uint8_t *down, *right; /* [N], where an image's window lies in it and its margin */
    int64_t margin, count, batch, classes, threads, adaptive; /* margin: black */
    float mean, scale; /* of pixels 0..255 */
    float decay, momentum, beta2, epsilon;
    layout at;
    float *weights, *first, *second, *gradient, *partial; /* blocks; `partial` has SLOTS of them */
    const coefficients *steps;
    double *loss_sum; /* of all images since it was zero */
    int64_t *correct;
    double last_loss; /* the mean of the last batch */
    chunk *chunks;
    scratch *scratches;
    lanes *logits; /* [chunks][classes] */
    float *output; /* [count][classes], predictions only */
    int (*sleep)(unsigned); /* microseconds */
    int64_t arrived, round, ended; /* of the barrier; ended: nobody waits there any more */
} task;

int64_t chunk_bytes(void) { return sizeof(chunk); }
int64_t scratch_bytes(void) { return sizeof(scratch); }

/* ---- arithmetic ---- */

INLINE lanes splat(float x) { return x - (lanes){}; }
INLINE lanes multiply_add(lanes a, lanes b, lanes c) { return __builtin_elementwise_fma(a, b, c); }
INLINE lanes choose(choices where, lanes a, lanes b) {
    return (lanes)((where & (choices)a) | (~where & (choices)b));
}
INLINE lanes or_zero(choices where, lanes a) { return (lanes)(where & (choices)a); }

INLINE float sum_of_half(half v) {
    quarter q = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
    return (q[0] + q[2]) + (q[1] + q[3]);
}
INLINE half folded(lanes v) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}
INLINE float sum(lanes v) { return sum_of_half(folded(v)); }

/* exp(x) for x <= 0 to 1.2e-7: 2^n times a polynomial of degree 6, the terms of exp's series. */
INLINE lanes exponential(lanes x) {
    x = choose(x < -87.0f, splat(-87.0f), x);
    lanes shifted = multiply_add(x, splat(1.44269504f), splat(12582912.0f)); /* rounds: 1.5 * 2^23 */
    choices n = (choices)shifted - 0x4B400000;
    lanes whole = shifted - 12582912.0f;
    lanes r = multiply_add(whole, splat(-0.693359375f), x); /* ln 2 in two parts */
    r = multiply_add(whole, splat(2.12194440e-4f), r);
    lanes p = splat(1.0f / 720);
    static const float terms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    EACH(i, 6) p = multiply_add(p, r, splat(terms[i]));
    return p * (lanes)((n + 127) << 23);
}

/* log(x) for x >= 1: from the exponent, by Halley's method on exp(y) = x. */
INLINE lanes logarithm(lanes x) {
    lanes y = __builtin_convertvector(((choices)x >> 23) - 126, lanes) * 0.693147181f;
    EACH(i, 4) {
        lanes inverse = exponential(-y);
        lanes ratio = x * inverse;
        y += 2 * (ratio - 1) / (ratio + 1);
    }
    return y;
}

/* ---- one chunk forward ---- */

/* Normalised pixels of up to sixteen images; the other lanes are those of the first. */
static void load(const task *t, chunk *to, const int64_t *order, int64_t count) {
    to->count = count;
    for (int lane = 0; lane < LANES; lane++) {
        int64_t image = order[lane < count ? lane : 0];
        const uint8_t *from = t->images + image * SIDE * SIDE;
        int64_t down = t->down ? t->down[image] - t->margin : 0;
        int64_t right = t->right ? t->right[image] - t->margin : 0;
        for (int64_t y = 0; y < SIDE; y++)
            for (int64_t x = 0; x < SIDE; x++) {
                int64_t row = y + down, column = x + right;
                int on_it = row >= 0 && row < SIDE && column >= 0 && column < SIDE;
                uint8_t pixel = on_it ? from[row * SIDE + column] : 0;
                to->pixels[y * SIDE + x][lane] = (pixel - t->mean) * t->scale;
            }
        if (t->labels) to->label[lane] = (int32_t)t->labels[image];
    }
}

/* Convolution, maximum of each 2x2 window, ReLU. `at` says which of the four it was, the first of
 * equals, or NOWHERE if ReLU cut it off. */
INLINE void convolve_and_pool(int channels, int side, int rows, const lanes *image,
                              const float *weights, const float *bias, lanes *pooled, places *at) {
    int half_side = (side - KERNEL + 1) / 2;
    for (int o = 0; o < rows; o += ROWS)
        for (int y = 0; y < half_side; y++)
            for (int x = 0; x < half_side; x++) {
                lanes best[ROWS];
                choices place[ROWS];
                UNROLLED for (int w0 = 0; w0 < WINDOW; w0 += WIDE) {
                    lanes total[ROWS][WIDE];
                    EACH(j, ROWS) EACH(w, WIDE) total[j][w] = splat(bias[o + j]);
                    const lanes *corner = image + (2 * y + w0 / 2) * side + 2 * x + w0 % 2;
                    for (int c = 0; c < channels; c++)
                        for (int ky = 0; ky < KERNEL; ky++) {
                            const lanes *from = corner + (c * side + ky) * side;
                            const float *weight = weights + (o * channels + c) * TAPS + ky * KERNEL;
                            EACH(kx, KERNEL) EACH(j, ROWS) EACH(w, WIDE)
                                total[j][w] = multiply_add(splat(weight[j * channels * TAPS + kx]),
                                                           from[w / 2 * side + w % 2 + kx], total[j][w]);
                        }
                    EACH(w, WIDE) EACH(j, ROWS) {
                        if (w0 + w == 0) {
                            best[j] = total[j][w];
                            place[j] = (choices){};
                        } else {
                            choices more = ~(total[j][w] <= best[j]); /* NaN is the largest */
                            best[j] = choose(more, total[j][w], best[j]);
                            place[j] = (more & (w0 + w)) | (~more & place[j]);
                        }
                    }
                }
                EACH(j, ROWS) {
                    choices positive = ~(best[j] <= 0.0f);
                    int to = ((o + j) * half_side + y) * half_side + x;
                    pooled[to] = or_zero(positive, best[j]);
                    at[to] = __builtin_convertvector((positive & place[j]) | (~positive & NOWHERE), places);
                }
            }
}

static void convolutions(const task *t, chunk *c) {
    const float *w = t->weights;
    convolve_and_pool(1, SIDE, CHANNELS1, c->pixels, w + t->at.conv1, w + t->at.bias1,
                      c->hidden1, c->places1);
    convolve_and_pool(CHANNELS1, POOL1, CHANNELS2, c->hidden1, w + t->at.conv2, w + t->at.bias2,
                      c->features, c->places2);
}

INLINE void transpose(const lanes *from, int rows, float *to, int stride) {
    for (int row = 0; row < rows; row++)
        EACH(lane, LANES) to[lane * stride + row] = from[row][lane];
}

/* Five rows of the first linear layer and their ReLU, for `n` chunks. */
INLINE void five_hidden(const task *t, chunk *c, int row, int n) {
    const float *weights = t->weights + t->at.fc1 + row * FEATURES;
    lanes total[ROWS][WIDE];
    EACH(j, ROWS) EACH(i, n) total[j][i] = splat(t->weights[t->at.bias3 + row + j]);
    for (int k = 0; k < FEATURES; k++)
        EACH(j, ROWS) EACH(i, n)
            total[j][i] = multiply_add(splat(weights[j * FEATURES + k]), c[i].features[k], total[j][i]);
    EACH(j, ROWS) EACH(i, n) c[i].hidden[row + j] = or_zero(~(total[j][i] <= 0.0f), total[j][i]);
}

static void hidden(const task *t, chunk *c, int64_t n, int64_t from, int64_t to) {
    for (int64_t row = from * ROWS; row < to * ROWS; row += ROWS) {
        int64_t i = 0;
        for (; i + WIDE <= n; i += WIDE) five_hidden(t, c + i, row, WIDE);
        for (; i < n; i++) five_hidden(t, c + i, row, 1);
    }
}

/* The last layer: logits, the largest of them, and the sum of exp(logit - largest). */
INLINE void last_layer(const task *t, const chunk *c, lanes *logits, lanes *largest, lanes *total) {
    for (int64_t k = 0; k < t->classes; k++) {
        const float *weights = t->weights + t->at.fc2 + k * HIDDEN;
        lanes logit = splat(t->weights[t->at.bias4 + k]);
        for (int row = 0; row < HIDDEN; row++)
            logit = multiply_add(splat(weights[row]), c->hidden[row], logit);
        logits[k] = logit;
        *largest = k ? choose(logit > *largest, logit, *largest) : logit;
    }
    *total = splat(0);
    for (int64_t k = 0; k < t->classes; k++) *total += exponential(logits[k] - *largest);
}

/* ---- one chunk backward ---- */

/* Loss and right answers; in place of the logits their gradients, and those of the hidden layer. */
static void answers(const task *t, chunk *c, lanes *logits, int64_t batch) {
    lanes largest, total;
    last_layer(t, c, logits, &largest, &total);
    lanes logs = logarithm(total), target = {};
    choices predicted = {}, number = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    lanes scale = or_zero(number < (int32_t)c->count, splat(1.0f / batch));
    for (int64_t k = t->classes - 1; k >= 0; k--) {
        choices is_best = logits[k] == largest, is_label = c->label == (int32_t)k;
        predicted = (is_best & (int32_t)k) | (~is_best & predicted);
        target = choose(is_label, logits[k], target);
        lanes probability = exponential(logits[k] - largest) / total;
        logits[k] = (probability - or_zero(is_label, splat(1))) * scale;
    }
    c->loss = 0;
    c->correct = 0;
    for (int lane = 0; lane < c->count; lane++) {
        c->loss += logs[lane] + largest[lane] - target[lane];
        c->correct += predicted[lane] == c->label[lane];
    }
    for (int row = 0; row < HIDDEN; row += ROWS) {
        lanes back[ROWS] = {};
        for (int64_t k = 0; k < t->classes; k++)
            EACH(j, ROWS) back[j] = multiply_add(
                splat(t->weights[t->at.fc2 + k * HIDDEN + row + j]), logits[k], back[j]);
        EACH(j, ROWS) c->hidden_back[row + j] = or_zero(c->hidden[row + j] > 0.0f, back[j]);
    }
    transpose(c->hidden, HIDDEN, &c->hidden_by_image[0][0], HIDDEN_PADDED);
}

/* The gradient of sixteen features, from a copy of their columns of weights, for `n` chunks. */
INLINE void panel_back(const lanes *panel, chunk *c, int64_t first, int n) {
    for (int k = 0; k < PANEL; k += PANEL_ROWS) {
        lanes total[PANEL_ROWS][WIDE] = {};
        for (int row = 0; row < HIDDEN; row++) {
            const float *weights = (const float *)(panel + row) + k;
            EACH(j, PANEL_ROWS) EACH(i, n)
                total[j][i] = multiply_add(splat(weights[j]), c[i].hidden_back[row], total[j][i]);
        }
        EACH(j, PANEL_ROWS) EACH(i, n) c[i].features_back[first + k + j] = total[j][i];
    }
}

static void features_back(const task *t, scratch *s, chunk *c, int64_t n, int64_t from, int64_t to) {
    for (int64_t first = from * PANEL; first < to * PANEL; first += PANEL) {
        const float *weights = t->weights + t->at.fc1 + first;
        for (int row = 0; row < HIDDEN; row++)
            s->panel[row] = *(const lanes_anywhere *)(weights + row * FEATURES);
        int64_t i = 0;
        for (; i + WIDE <= n; i += WIDE) panel_back(s->panel, c + i, first, WIDE);
        for (; i < n; i++) panel_back(s->panel, c + i, first, 1);
    }
}

/* Undo pooling: each gradient goes to where its maximum was. Adds the gradient of the biases. */
INLINE void unpool(int rows, int half_side, const lanes *pooled, const places *at, lanes *conv,
                   float *bias) {
    for (int o = 0; o < rows; o++) {
        lanes total = {};
        for (int y = 0; y < half_side; y++)
            for (int x = 0; x < half_side; x++) {
                int from = (o * half_side + y) * half_side + x;
                choices place = __builtin_convertvector(at[from], choices);
                lanes *to = conv + (o * 2 * half_side + 2 * y) * 2 * half_side + 2 * x;
                EACH(w, WINDOW) to[w / 2 * 2 * half_side + w % 2] = or_zero(place == w, pooled[from]);
                total += or_zero(place != NOWHERE, pooled[from]);
            }
        bias[o] += sum(total);
    }
}

/* Add the gradient of two filters. */
INLINE void filters_back(int channels, int side, const lanes *image, const lanes *conv,
                         float *gradient) {
    int s = side - KERNEL + 1;
    for (int c = 0; c < channels; c++)
        for (int ky = 0; ky < KERNEL; ky++) {
            piece total[PIECES][2][KERNEL] = {};
            EACH(p, PIECES)
                for (int y = 0; y < s; y++) {
                    const piece *from = (const piece *)(image + (c * side + y + ky) * side) + p;
                    const piece *by = (const piece *)(conv + y * s) + p;
                    for (int x = 0; x < s; x++)
                        EACH(j, 2) EACH(kx, KERNEL)
                            total[p][j][kx] = __builtin_elementwise_fma(
                                by[PIECES * (j * s * s + x)], from[PIECES * (x + kx)], total[p][j][kx]);
                }
            EACH(j, 2) EACH(kx, KERNEL) {
#ifdef MANY
                half both = folded(total[0][j][kx]);
#else
                half both = total[0][j][kx] + total[1][j][kx];
#endif
                gradient[(j * channels + c) * TAPS + ky * KERNEL + kx] += sum_of_half(both);
            }
        }
}

/* The gradient of the second convolution's input. Five filters at a time stay in the cache. */
static void image_back(const float *weights, const lanes *conv, lanes *image) {
    enum { STRIDE = POOL1 * POOL1 };
    for (int o0 = 0; o0 < CHANNELS2; o0 += ROWS)
        for (int c = 0; c < CHANNELS1; c += ROWS)
            for (int y = 0; y < POOL1; y++)
                for (int x = 0; x < POOL1; x++) {
                    lanes *to = image + (c * POOL1 + y) * POOL1 + x;
                    lanes total[ROWS];
                    EACH(j, ROWS) total[j] = o0 ? to[j * STRIDE] : splat(0);
                    int top = y >= CONV2 ? y - CONV2 + 1 : 0, bottom = y < KERNEL ? y + 1 : KERNEL;
                    int left = x >= CONV2 ? x - CONV2 + 1 : 0, right = x < KERNEL ? x + 1 : KERNEL;
                    for (int o = o0; o < o0 + ROWS; o++)
                        for (int ky = top; ky < bottom; ky++) {
                            const lanes *by = conv + (o * CONV2 + y - ky) * CONV2 + x;
                            const float *weight = weights + (o * CHANNELS1 + c) * TAPS + ky * KERNEL;
                            for (int kx = left; kx < right; kx++)
                                EACH(j, ROWS) total[j] =
                                    multiply_add(splat(weight[j * TAPS + kx]), by[-kx], total[j]);
                        }
                    EACH(j, ROWS) to[j * STRIDE] = total[j];
                }
}

/* Add a chunk's gradients of the convolutions to a slot's. */
static void convolutions_back(const task *t, scratch *s, const chunk *c, float *partial) {
    unpool(CHANNELS2, POOL2, c->features_back, c->places2, s->conv2_back, partial + t->at.bias2);
    for (int o = 0; o < CHANNELS2; o += 2)
        filters_back(CHANNELS1, POOL1, c->hidden1, s->conv2_back + o * CONV2 * CONV2,
                     partial + t->at.conv2 + o * CHANNELS1 * TAPS);
    image_back(t->weights + t->at.conv2, s->conv2_back, s->hidden1_back);
    for (int o = 0; o < CHANNELS1; o += 2) {
        unpool(2, POOL1, s->hidden1_back + o * POOL1 * POOL1, c->places1 + o * POOL1 * POOL1,
               s->conv1_back, partial + t->at.bias1 + o);
        filters_back(1, SIDE, c->pixels, s->conv1_back, partial + t->at.conv1 + o * TAPS);
    }
}

/* ---- the batch's gradients and the update ---- */

/* Sixteen parameters take their step, as torch.optim.SGD and AdamW do it. */
INLINE void update(const task *t, coefficients by, int64_t i, lanes gradient) {
    lanes_anywhere *weights = (lanes_anywhere *)(t->weights + i);
    lanes_anywhere *first = (lanes_anywhere *)(t->first + i);
    if (t->adaptive) {
        lanes_anywhere *second = (lanes_anywhere *)(t->second + i);
        *first = multiply_add(gradient - *first, splat(1 - t->momentum), *first);
        *second = multiply_add(gradient * gradient, splat(1 - t->beta2), *second * t->beta2);
        lanes size = multiply_add(__builtin_elementwise_sqrt((lanes)*second), splat(by.second_scale),
                                  splat(t->epsilon));
        *weights = multiply_add(splat(-by.rate), *first / size, *weights * by.keep);
    } else {
        gradient = multiply_add(splat(t->decay), *weights, gradient);
        *first = multiply_add(*first, splat(t->momentum), gradient);
        *weights = multiply_add(splat(-by.rate), *first, *weights);
    }
}

/* Rows of the first linear layer: their gradient is made and used in registers. */
static void update_hidden(const task *t, coefficients by, const chunk *c, int64_t n, int64_t from,
                          int64_t to) {
    for (int64_t row = from * ROWS; row < to * ROWS; row += ROWS)
        for (int k = 0; k < FEATURES; k += COLUMNS * LANES) {
            lanes total[ROWS][COLUMNS] = {};
            for (int64_t i = 0; i < n; i++) {
                const float *left = (const float *)(c[i].hidden_back + row);
                for (int lane = 0; lane < LANES; lane++) {
                    const float *right = c[i].features_by_image[lane] + k;
                    EACH(j, ROWS) EACH(q, COLUMNS)
                        total[j][q] = multiply_add(splat(left[j * LANES + lane]),
                                                   *(const lanes_anywhere *)(right + q * LANES), total[j][q]);
                }
            }
            EACH(j, ROWS) EACH(q, COLUMNS)
                update(t, by, t->at.fc1 + (row + j) * FEATURES + k + q * LANES, total[j][q]);
        }
}

/* Of the last layer and both linear layers' biases, into `gradient`. */
static void small_gradients(const task *t, const chunk *c, int64_t n) {
    float *to = t->gradient;
    for (int row = 0; row < HIDDEN; row++) {
        lanes total = {};
        for (int64_t i = 0; i < n; i++) total += c[i].hidden_back[row];
        to[t->at.bias3 + row] = sum(total);
    }
    for (int64_t k = 0; k < t->classes; k++) {
        lanes bias = {};
        for (int64_t i = 0; i < n; i++) bias += t->logits[i * t->classes + k];
        to[t->at.bias4 + k] = sum(bias);
        for (int at = 0; at < HIDDEN_PADDED; at += LANES) {
            int column = at < HIDDEN - LANES ? at : HIDDEN - LANES;
            lanes total = {};
            for (int64_t i = 0; i < n; i++)
                for (int lane = 0; lane < LANES; lane++)
                    total = multiply_add(splat(t->logits[i * t->classes + k][lane]),
                                         *(const lanes_anywhere *)(c[i].hidden_by_image[lane] + column), total);
            *(lanes_anywhere *)(to + t->at.fc2 + k * HIDDEN + column) = total;
        }
    }
}

/* ---- threads ---- */

typedef struct { int64_t from, to; } range;
INLINE range share(int64_t total, int64_t number, int64_t of) {
    return (range){total * number / of, total * (number + 1) / of};
}

/* Wait for the other threads: awake, since they are soon there; then asleep, since somebody else has
   their core. */
static void meet(task *t) {
    int64_t round = __atomic_load_n(&t->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&t->arrived, 1, __ATOMIC_ACQ_REL) == t->threads) {
        __atomic_store_n(&t->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&t->round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&t->round, __ATOMIC_ACQUIRE) == round; spins++) {
        if (__atomic_load_n(&t->ended, __ATOMIC_RELAXED)) return;
        if (spins >= SPINS) t->sleep(1);
        RELAX;
    }
}

static void step(task *t, int64_t thread, coefficients by, const int64_t *order, int64_t batch) {
    scratch *own = t->scratches + thread;
    int64_t n = (batch + LANES - 1) / LANES, slots = n < SLOTS ? n : SLOTS;
    range mine = share(slots, thread, t->threads);
    range chunks = {share(n, mine.from, slots).from, share(n, mine.to, slots).from};
    for (int64_t i = chunks.from; i < chunks.to; i++) {
        int64_t left = batch - i * LANES;
        load(t, t->chunks + i, order + i * LANES, left < LANES ? left : LANES);
        convolutions(t, t->chunks + i);
        transpose(t->chunks[i].features, FEATURES, &t->chunks[i].features_by_image[0][0], FEATURES);
    }
    meet(t);
    range rows = share(HIDDEN / ROWS, thread, t->threads);
    hidden(t, t->chunks, n, rows.from, rows.to);
    meet(t);
    for (int64_t i = chunks.from; i < chunks.to; i++)
        answers(t, t->chunks + i, t->logits + i * t->classes, batch);
    meet(t);
    range panels = share(FEATURES / PANEL, thread, t->threads);
    features_back(t, own, t->chunks, n, panels.from, panels.to);
    if (thread == t->threads - 1) small_gradients(t, t->chunks, n);
    meet(t);
    for (int64_t slot = mine.from; slot < mine.to; slot++) {
        float *partial = t->partial + slot * t->at.fc1;
        for (int64_t i = 0; i < t->at.fc1; i++) partial[i] = 0;
        range of_slot = share(n, slot, slots);
        for (int64_t i = of_slot.from; i < of_slot.to; i++)
            convolutions_back(t, own, t->chunks + i, partial);
    }
    meet(t);
    range early = share(t->at.fc1 / LANES, thread, t->threads);
    for (int64_t i = early.from * LANES; i < early.to * LANES; i += LANES) {
        lanes total = {};
        for (int64_t slot = 0; slot < slots; slot++)
            total += *(const lanes_anywhere *)(t->partial + slot * t->at.fc1 + i);
        update(t, by, i, total);
    }
    update_hidden(t, by, t->chunks, n, rows.from, rows.to);
    range late = share((t->at.size - t->at.bias3) / LANES, thread, t->threads);
    for (int64_t i = t->at.bias3 + late.from * LANES; i < t->at.bias3 + late.to * LANES; i += LANES)
        update(t, by, i, *(const lanes_anywhere *)(t->gradient + i));
    if (thread == 0) {
        double loss = 0;
        for (int64_t i = 0; i < n; i++) {
            loss += t->chunks[i].loss;
            *t->correct += t->chunks[i].correct;
        }
        *t->loss_sum += loss;
        t->last_loss = loss / batch;
    }
    meet(t);
}

/* Train on t->order in batches; every thread calls it once. */
void train(task *t, int64_t thread) {
    for (int64_t at = 0, i = 0; at < t->count && !t->ended; at += t->batch, i++) {
        int64_t left = t->count - at;
        step(t, thread, t->steps[i], t->order + at, left < t->batch ? left : t->batch);
    }
}

/* Log-probabilities of t->order; every thread calls it once. */
void predict(task *t, int64_t thread) {
    chunk *own = t->chunks + thread * GROUP;
    lanes *logits = t->logits + thread * t->classes;
    range groups = share((t->count + GROUP * LANES - 1) / (GROUP * LANES), thread, t->threads);
    for (int64_t group = groups.from; group < groups.to; group++) {
        int64_t n = 0, first = group * GROUP * LANES;
        for (int64_t at = first; n < GROUP && at < t->count; n++, at += LANES) {
            int64_t left = t->count - at;
            load(t, own + n, t->order + at, left < LANES ? left : LANES);
            convolutions(t, own + n);
        }
        hidden(t, own, n, 0, HIDDEN / ROWS);
        for (int64_t i = 0; i < n; i++) {
            lanes largest, total;
            last_layer(t, own + i, logits, &largest, &total);
            lanes logs = logarithm(total);
            for (int64_t k = 0; k < t->classes; k++) {
                lanes answer = logits[k] - largest - logs;
                for (int lane = 0; lane < own[i].count; lane++)
                    t->output[(first + i * LANES + lane) * t->classes + k] = answer[lane];
            }
        }
    }
}
