/* Steps of elementwise optimizers: what thrifty.optim.elementwise does with tensors, in one pass over memory.

   A chunk of 256 values goes through decode, rule and encode while it lies in the first cache. Every operation is
   one of IEEE 754 in single precision, in the order of the Python functions, and none is contracted. Built by native.py; no headers but those of the language. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#define CHUNK 256
#define MOST_STATES 2
#define SMALLEST 0x1p-100f
#define LARGEST 3.3e38

enum rule { ADAMW, ADAM, LION, MOMENTUM, SGD };
enum kind { FLOAT32, BFLOAT16, UNIFORM8, ROOT8, ROOT4, SQUARE4 };

typedef struct {
  int64_t values;
  void *p;
  void *g;
  void *kept[MOST_STATES];
  void *scales[MOST_STATES];
} tensor;

typedef struct {
  int32_t rule, states;
  int32_t p_kind, g_kind;
  int32_t kinds[MOST_STATES];
  int32_t block; /* values that share a scale; divides CHUNK */
  int32_t threads;
  const float *u; /* (states + 1, CHUNK), in [0, 1); the last for the parameter */
  const float *h;
} job;

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

/* ---- floats of 16 bits ---- */

static void widen(float *restrict out, const uint16_t *restrict in, int n) {
  for (int i = 0; i < n; i++) out[i] = float_of((uint32_t)in[i] << 16);
}

/* The next one away from zero with as much chance as x is near; what is not finite stays so. */
static void narrow(uint16_t *restrict out, const float *restrict in, const float *restrict u, int n) {
  for (int i = 0; i < n; i++) {
    uint32_t bits = bits_of(in[i]);
    uint32_t sound = (bits & 0x7fffffffu) < 0x7f800000u, nan = (bits & 0x7fffffffu) > 0x7f800000u;
    uint32_t moved = bits + (sound ? (uint32_t)(int32_t)(u[i] * 65536.0f) : 0u);
    out[i] = (uint16_t)((moved | (nan ? 0x400000u : 0u)) >> 16);
  }
}

/* ---- blocks: a scale each ---- */

static float scale_of(const uint16_t *scales, int at) { return float_of((uint32_t)scales[at] << 16); }

/* Largest magnitude of a block, nan above all: as whole numbers, floats without sign have their order. */
static float top_of(const float *restrict x, int n) {
  uint32_t top = 0;
  for (int i = 0; i < n; i++) {
    uint32_t size = bits_of(x[i]) & 0x7fffffffu;
    top = size > top ? size : top;
  }
  return float_of(top);
}

/* Stores the scale, rounded up, of a block whose largest level is `most`; returns what turns values to codes. */
static float new_scale(uint16_t *scales, int at, float top, float most) {
  if (!(top < INFINITY)) {
    scales[at] = 0x7fc0;
    return 1.0f;
  }
  if (top < SMALLEST) {
    scales[at] = 0;
    return 1.0f;
  }
  float scale = top * (float)(1.0 / (double)most), limit = (float)(LARGEST / (double)most);
  uint32_t bits = (bits_of(scale < limit ? scale : limit) + 0xffffu) & 0xffff0000u;
  scales[at] = (uint16_t)(bits >> 16);
  return 1.0f / float_of(bits);
}

static void decode_uniform8(float *restrict x, const uint8_t *restrict codes, float scale, int n) {
  for (int i = 0; i < n; i++) x[i] = ((float)codes[i] - 128.0f) * scale;
}

static void encode_uniform8(
    uint8_t *restrict codes, const float *restrict x, float inverse, const float *restrict u, int n) {
  for (int i = 0; i < n; i++) codes[i] = (uint8_t)(int32_t)(x[i] * inverse + (u[i] + 128.0f));
}

static void decode_root8(float *restrict x, const uint8_t *restrict codes, float scale, int n) {
  for (int i = 0; i < n; i++) {
    float root = (float)codes[i] * scale + scale;
    x[i] = root * root;
  }
}

static void encode_root8(
    uint8_t *restrict codes, const float *restrict root, float inverse, const float *restrict u, int n) {
  for (int i = 0; i < n; i++) codes[i] = (uint8_t)(int32_t)(root[i] * inverse + (u[i] - 1.0f));
}

/* Codes of 4 bits: the first half of a block in the low ones of its bytes, the second in the high ones. Each in two
   loops: one that reads or makes bytes is cut into vectors of 64, more than half a block has. */

static inline __attribute__((always_inline)) void part(int32_t *restrict code, const uint8_t *restrict codes, int n) {
  for (int i = 0; i < n / 2; i++) code[i] = codes[i] & 15;
  for (int i = 0; i < n / 2; i++) code[i + n / 2] = codes[i] >> 4;
}

static inline __attribute__((always_inline)) void decode_root4(float *restrict x, const uint8_t *restrict codes, float scale, int n) {
  int32_t code[CHUNK];
  part(code, codes, n);
  for (int i = 0; i < n; i++) {
    float root = (float)code[i] * scale + scale;
    x[i] = root * root;
  }
}

static inline __attribute__((always_inline)) void join(uint8_t *restrict codes, const int32_t *restrict code, int n) {
  for (int i = 0; i < n / 2; i++) codes[i] = (uint8_t)(code[i] | code[i + n / 2] << 4);
}

static inline __attribute__((always_inline)) void encode_root4(
    uint8_t *restrict codes, const float *restrict root, float inverse, const float *restrict u, int n) {
  int32_t code[CHUNK];
  for (int i = 0; i < n; i++) code[i] = (int32_t)(root[i] * inverse + (u[i] - 1.0f));
  join(codes, code, n);
}

static inline __attribute__((always_inline)) void decode_square4(float *restrict x, const uint8_t *restrict codes, float scale, int n) {
  int32_t code[CHUNK];
  part(code, codes, n);
  for (int i = 0; i < n; i++) {
    float whole = (float)code[i] - 7.0f;
    x[i] = whole * fabsf(whole) * scale;
  }
}

static inline int32_t square_code(float x, float inverse, float u) {
  float size = fabsf(x) * inverse, whole = (float)(int32_t)sqrtf(size);
  float share = (size - whole * whole) / (2.0f * whole + 1.0f);
  int32_t code = (int32_t)whole + (int32_t)((share > 0.0f ? share : 0.0f) + u);
  return (x < 0.0f ? -code : code) + 7;
}

static inline __attribute__((always_inline)) void encode_square4(
    uint8_t *restrict codes, const float *restrict x, float inverse, const float *restrict u, int n) {
  int32_t code[CHUNK];
  for (int i = 0; i < n; i++) code[i] = square_code(x[i], inverse, u[i]);
  join(codes, code, n);
}

static int bits_per_code(int kind) { return kind == ROOT4 || kind == SQUARE4 ? 4 : 8; }

static int rooted(int kind) { return kind == ROOT8 || kind == ROOT4; }

static void decode(int kind, float *x, const uint8_t *codes, const uint16_t *scales, int n, int block) {
  for (int at = 0; at < n; at += block, scales++) {
    int size = n - at < block ? n - at : block;
    float scale = scale_of(scales, 0);
    const uint8_t *from = codes + at * bits_per_code(kind) / 8;
    switch (kind) {
      case UNIFORM8: decode_uniform8(x + at, from, scale, size); break;
      case ROOT8: decode_root8(x + at, from, scale, size); break;
      case ROOT4: /* a constant size makes loops without rests */
        if (size == 64) decode_root4(x + at, from, scale, 64);
        else decode_root4(x + at, from, scale, size);
        break;
      default:
        if (size == 64) decode_square4(x + at, from, scale, 64);
        else decode_square4(x + at, from, scale, size);
    }
  }
}

/* x are values, or of kinds of roots the roots. */
static void encode(int kind, uint8_t *codes, uint16_t *scales, const float *x, const float *u, int n, int block) {
  for (int at = 0; at < n; at += block, scales++) {
    int size = n - at < block ? n - at : block;
    float most = kind == UNIFORM8 ? 127.0f : kind == ROOT8 ? 256.0f : kind == ROOT4 ? 16.0f : 49.0f;
    float inverse = new_scale(scales, 0, top_of(x + at, size), most);
    uint8_t *to = codes + at * bits_per_code(kind) / 8;
    switch (kind) { /* u is of a column of a block */
      case UNIFORM8: encode_uniform8(to, x + at, inverse, u, size); break;
      case ROOT8: encode_root8(to, x + at, inverse, u, size); break;
      case ROOT4:
        if (size == 64) encode_root4(to, x + at, inverse, u, 64);
        else encode_root4(to, x + at, inverse, u, size);
        break;
      default:
        if (size == 64) encode_square4(to, x + at, inverse, u, 64);
        else encode_square4(to, x + at, inverse, u, size);
    }
  }
}

/* ---- rules: rules.py has their formulas ---- */

static inline __attribute__((always_inline)) void adam_like(
    float *restrict p, const float *restrict g, float *restrict m, float *restrict v, float *restrict roots,
    const float *h, int n, int decoupled) {
  const float b1 = h[0], c1 = h[1], b2 = h[2], c2 = h[3], size = h[4], root = h[5], eps = h[6], keep = h[7], add = h[8];
  for (int i = 0; i < n; i++) {
    float x = decoupled ? g[i] : g[i] + add * p[i];
    float m1 = b1 * m[i] + c1 * x, v1 = b2 * v[i] + c2 * (x * x), r = sqrtf(v1);
    m[i] = m1;
    v[i] = v1;
    if (roots) roots[i] = r;
    p[i] = (decoupled ? p[i] * keep : p[i]) - size * m1 / (r * root + eps);
  }
}

static void lion(float *restrict p, const float *restrict g, float *restrict m, const float *h, int n) {
  const float b1 = h[0], c1 = h[1], b2 = h[2], c2 = h[3], lr = h[4], keep = h[5];
  for (int i = 0; i < n; i++) {
    float x = b1 * m[i] + c1 * g[i];
    float sign = (x > 0.0f ? 1.0f : 0.0f) - (x < 0.0f ? 1.0f : 0.0f) + (x - x); /* nan of what is not finite */
    m[i] = b2 * m[i] + c2 * g[i];
    p[i] = p[i] * keep - lr * sign;
  }
}

static void momentum(float *restrict p, const float *restrict g, float *restrict m, const float *h, int n) {
  const float keep = h[0], take = h[1], ahead = h[2], now = h[3];
  for (int i = 0; i < n; i++) {
    m[i] = keep * m[i] + take * g[i];
    p[i] = ahead * g[i] + now * m[i];
  }
}

static void sgd(float *restrict p, const float *restrict g, const float *h, int n) {
  const float keep = h[0], lr = h[1];
  for (int i = 0; i < n; i++) p[i] = keep * p[i] - lr * g[i];
}

static void advance(int rule, float *p, const float *g, float **x, float *roots, const float *h, int n) {
  switch (rule) {
    case ADAMW:
      if (roots) adam_like(p, g, x[0], x[1], roots, h, n, 1);
      else adam_like(p, g, x[0], x[1], 0, h, n, 1);
      break;
    case ADAM:
      if (roots) adam_like(p, g, x[0], x[1], roots, h, n, 0);
      else adam_like(p, g, x[0], x[1], 0, h, n, 0);
      break;
    case LION: lion(p, g, x[0], h, n); break;
    case MOMENTUM: momentum(p, g, x[0], h, n); break;
    default: sgd(p, g, h, n);
  }
}

/* ---- a chunk, and all of them ---- */

static void step_chunk(const job *j, const tensor *t, int64_t at) {
  float p_room[CHUNK], g_room[CHUNK], rooms[MOST_STATES][CHUNK], roots[CHUNK], *x[MOST_STATES] = {0};
  int n = t->values - at < CHUNK ? (int)(t->values - at) : CHUNK, padded = n, coded = 0, any_root = 0;
  for (int s = 0; s < j->states; s++) coded |= j->kinds[s] > BFLOAT16, any_root |= rooted(j->kinds[s]);
  if (coded) padded = (n + 7) / 8 * 8; /* the last block is filled up with zeros, and its codes are kept */
  int64_t block = at / j->block;
  float *p = (float *)t->p + at, *g = (float *)t->g + at;
  if (j->p_kind == BFLOAT16 || padded > n) {
    p = p_room;
    memset(p + n, 0, sizeof(float) * (size_t)(padded - n));
    if (j->rule == MOMENTUM) memset(p, 0, sizeof(float) * (size_t)n); /* written, not read */
    else if (j->p_kind == BFLOAT16) widen(p, (uint16_t *)t->p + at, n);
    else memcpy(p, (float *)t->p + at, sizeof(float) * (size_t)n);
  }
  if (j->g_kind == BFLOAT16 || padded > n) {
    g = g_room;
    memset(g + n, 0, sizeof(float) * (size_t)(padded - n));
    if (j->g_kind == BFLOAT16) widen(g, (uint16_t *)t->g + at, n);
    else memcpy(g, (float *)t->g + at, sizeof(float) * (size_t)n);
  }
  for (int s = 0; s < j->states; s++) {
    int kind = j->kinds[s];
    x[s] = kind == FLOAT32 ? (float *)t->kept[s] + at : rooms[s];
    if (kind == BFLOAT16) widen(x[s], (uint16_t *)t->kept[s] + at, n);
    if (kind > BFLOAT16)
      decode(kind, x[s], (uint8_t *)t->kept[s] + at * bits_per_code(kind) / 8, (uint16_t *)t->scales[s] + block,
             padded, j->block);
  }
  advance(j->rule, p, g, x, any_root ? roots : 0, j->h, padded);
  for (int s = 0; s < j->states; s++) {
    int kind = j->kinds[s];
    const float *u = j->u + s * CHUNK;
    if (kind == BFLOAT16) narrow((uint16_t *)t->kept[s] + at, x[s], u, n);
    if (kind > BFLOAT16)
      encode(kind, (uint8_t *)t->kept[s] + at * bits_per_code(kind) / 8, (uint16_t *)t->scales[s] + block,
             rooted(kind) ? roots : x[s], u, padded, j->block);
  }
  if (j->p_kind == BFLOAT16) narrow((uint16_t *)t->p + at, p, j->u + j->states * CHUNK, n);
  else if (p == p_room) memcpy((float *)t->p + at, p, sizeof(float) * (size_t)n);
}

/* Chunks first to last, counted through all tensors. */
static void step_span(const job *j, const tensor *tensors, int64_t first, int64_t last) {
  for (int64_t t = 0, start = 0; start < last; t++) {
    int64_t chunks = (tensors[t].values + CHUNK - 1) / CHUNK;
    int64_t from = first > start ? first - start : 0, to = last - start < chunks ? last - start : chunks;
    for (int64_t c = from; c < to; c++) step_chunk(j, tensors + t, c * CHUNK);
    start += chunks;
  }
}

/* One step of all tensors. Each thread takes as many chunks as the others; no result depends on how many they are. */
void thrifty_step(const job *j, const tensor *tensors, int64_t count) {
  int64_t chunks = 0;
  for (int64_t t = 0; t < count; t++) chunks += (tensors[t].values + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(j->threads) schedule(static, 1) if (j->threads > 1)
  for (int part = 0; part < j->threads; part++) {
#if defined(__SSE__)
    unsigned int before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* numbers below 2^-126 are zeros: some processors take a hundred cycles for each */
#endif
    step_span(j, tensors, chunks * part / j->threads, chunks * (part + 1) / j->threads);
#if defined(__SSE__)
    _mm_setcsr(before);
#endif
  }
}
