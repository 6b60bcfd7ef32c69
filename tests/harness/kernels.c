/* Trains and predicts with made-up images, then prints a hash of all weights and answers: whatever
 * it is compiled for must print the same. Any argument: AdamW instead of SGD. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/digits/training/cpu_kernels/kernels.c"

enum { IMAGES = 200, PIXELS = SIDE * SIDE, CLASSES = 10, BATCH = 64, STEPS = 4, CHUNKS = 4, PARTS = 8 };

static uint32_t state = 1;

static uint32_t random_bits(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static void *room(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    return memset(aligned_alloc(64, bytes), 0, bytes);
}

static uint64_t hashed(uint64_t hash, const void *from, int64_t bytes) { /* FNV-1a */
    for (int64_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)from)[i]) * 1099511628211u;
    return hash;
}

static int stay(unsigned microseconds) { return (int)microseconds; }

int main(int arguments, char **unused) {
    (void)unused;
    static const int sizes[PARTS] = {500, 20, 25000, 50, 400000, 500, HIDDEN * CLASSES, CLASSES};
    static const float spans[PARTS] = {0.2f, 0.2f, 0.05f, 0.05f, 0.04f, 0.04f, 0.05f, 0.05f};
    int64_t starts[PARTS + 1] = {0};
    for (int i = 0; i < PARTS; i++) starts[i + 1] = starts[i] + (sizes[i] + LANES - 1) / LANES * LANES;
    int64_t block = starts[PARTS] * sizeof(float);
    float *weights = room(block);
    for (int i = 0; i < PARTS; i++)
        for (int k = 0; k < sizes[i]; k++)
            weights[starts[i] + k] = ((int)(random_bits() % 2001) - 1000) * 0.001f * spans[i];
    uint8_t *images = room(IMAGES * PIXELS);
    for (int i = 0; i < IMAGES * PIXELS; i++) images[i] = random_bits() % 256;
    int64_t *labels = room(8 * IMAGES), *order = room(8 * IMAGES);
    uint8_t *down = room(IMAGES), *right = room(IMAGES);
    for (int i = 0; i < IMAGES; i++) {
        labels[i] = random_bits() % CLASSES;
        order[i] = i * 77 % IMAGES;
        down[i] = random_bits() % 3;
        right[i] = random_bits() % 3;
    }
    coefficients steps[STEPS];
    for (int i = 0; i < STEPS; i++) steps[i] = (coefficients){0.01f / (i + 1), 0.9999f, 1 + 1.0f / (i + 1)};
    double loss_sum = 0;
    int64_t correct = 0;
    task t = {
        .images = images, .labels = labels, .order = order, .down = down, .right = right,
        .margin = 1, .count = IMAGES, .batch = BATCH, .classes = CLASSES, .threads = 1,
        .adaptive = arguments > 1, .mean = 33.3f, .scale = 0.0127f, .decay = 0.01f,
        .momentum = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .weights = weights,
        .first = room(block), .second = room(block), .gradient = room(block),
        .partial = room(SLOTS * starts[4] * sizeof(float)), .steps = steps,
        .loss_sum = &loss_sum, .correct = &correct, .chunks = room(CHUNKS * sizeof(chunk)),
        .scratches = room(sizeof(scratch)), .logits = room(CHUNKS * CLASSES * sizeof(lanes)),
        .output = room(IMAGES * CLASSES * sizeof(float)), .sleep = stay,
    };
    memcpy(&t.at, starts, sizeof starts);
    train(&t, 0);
    train(&t, 0);
    t.down = t.right = NULL;
    predict(&t, 0);
    uint64_t hash = hashed(14695981039346656037u, weights, block);
    hash = hashed(hash, t.output, IMAGES * CLASSES * sizeof(float));
    printf("%016llx %.17g %lld\n", (unsigned long long)hash, loss_sum, (long long)correct);
}
