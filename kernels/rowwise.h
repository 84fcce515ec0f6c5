// Row-wise loops that every variant compiles for its own instruction set: quantising activations,
// A x, and finishing a row. Everything is in an anonymous namespace on purpose: one shared inline
// copy could be the AVX-512 one and be called on a processor without it.
#pragma once

#include <cstring>
#include <initializer_list>

#include "variant.h"

namespace paretune {
namespace {

// Without a hardware FMA the library call would be a hundred times slower than two roundings.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// The two largest of |x| as bit patterns: they order like the values, with NaN above infinity, so a
// NaN reaches the scale and from there the output. `at` is where the largest lies.
inline void two_largest(const float* x, uint32_t* first, uint32_t* second, int* at) {
  uint32_t bits[kBlock];
  std::memcpy(bits, x, sizeof(bits));
  uint32_t largest = 0;
  for (int i = 0; i < kBlock; ++i) {
    bits[i] &= 0x7fffffffu;
    largest = bits[i] > largest ? bits[i] : largest;
  }
  int index = 0;
  while (bits[index] != largest) ++index;
  bits[index] = 0;
  uint32_t next = 0;
  for (int i = 0; i < kBlock; ++i) next = bits[i] > next ? bits[i] : next;
  *first = largest;
  *second = next;
  *at = index;
}

constexpr float kTiny = 1e-30f;
constexpr float kHuge = 3.4028234664e38f;

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Rounds |value| < 2^22 half to even and leaves the integer in the low mantissa bits; unlike lrintf
// it vectorises everywhere.
inline int32_t round_to_int(float value) {
  const float shifted = value + 12582912.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return bits - 0x4b400000;
}

// kUnsigned: the variant's panel holds table + 128.
template <bool kUnsigned>
void quantize_row_generic(const float* x, const float* input_scale, int64_t blocks,
                          const IntegerCodebook& codebook, int rows, uint32_t* words,
                          BlockHeader* headers) {
  for (int64_t block = 0; block < blocks; ++block) {
    float values[kBlock];
    for (int i = 0; i < kBlock; ++i) values[i] = x[block * kBlock + i];
    if (input_scale != nullptr) {
      for (int i = 0; i < kBlock; ++i) values[i] *= input_scale[block * kBlock + i];
    }
    uint32_t first, second;
    int at;
    two_largest(values, &first, &second, &at);
    const float largest = from_bits(first) * (1.0f / 128.0f);
    // Not std::max: the comparison must let a NaN through.
    const float top = from_bits(second) > largest ? from_bits(second) : largest;
    float scale = top * (1.0f / 127.0f);
    float inverse = 127.0f / top;
    if (!(top >= kTiny && top <= kHuge)) {
      // Below kTiny the inverse overflows: the block counts as zero. Infinity or NaN: no integer
      // stands for it, so the scale carries it to every output of the row.
      inverse = 0.0f;
      scale = top < kTiny ? 0.0f : __builtin_nanf("");
      for (int i = 0; i < kBlock; ++i) values[i] = 0.0f;
    }
    int32_t q[kBlock];
    int32_t sum = 0;
    for (int i = 0; i < kBlock; ++i) {
      q[i] = round_to_int(values[i] * inverse);
      sum += q[i];
    }
    const int32_t high = (q[at] + 64) >> 7;
    q[at] -= high * 128;
    int8_t bytes[kBlock];
    // Word 2d holds k = 8d, 8d+2, 8d+4, 8d+6 and word 2d+1 the odd ones: the order in which the two
    // nibbles of four consecutive bytes come apart.
    for (int group = 0; group < kBlock / 8; ++group) {
      for (int i = 0; i < 4; ++i) {
        bytes[group * 8 + i] = static_cast<int8_t>(q[group * 8 + 2 * i]);
        bytes[group * 8 + 4 + i] = static_cast<int8_t>(q[group * 8 + 2 * i + 1]);
      }
    }
    for (int word = 0; word < kBlockWords; ++word) {
      std::memcpy(&words[(block * kBlockWords + word) * rows], bytes + word * 4, 4);
    }
    const int in_group = at % 8;
    BlockHeader header;
    header.scale = scale * codebook.step;
    header.offset = scale * codebook.offset * static_cast<float>(sum);
    header.correction = kUnsigned ? -128 * (sum - 128 * high) : 0;
    header.outlier_word = at / 8 * 2 + in_group % 2;
    header.outlier_high =
        static_cast<int32_t>((static_cast<uint32_t>(high) & 0xffu) << (in_group / 2 * 8));
    header.outlier_correction = kUnsigned ? -128 * high : 0;
    headers[block * rows] = header;
  }
}

// The two functions below are written over Lanes, 16 floats in the widest registers of the variant:
// left to the compiler, such loops come out scalar as often as not.
constexpr int kLanes = 16;

// h[r] = a[r] . x for R ranks. Each rank has its own lanes, so any grouping gives the same sum.
template <typename Lanes, int R>
inline void latent_ranks(const float* a, int64_t stride, const float* x, int64_t in_features,
                         float* h) {
  Lanes sums[R];
  for (int r = 0; r < R; ++r) sums[r] = Lanes::broadcast(0.0f);
  int64_t k = 0;
  for (; k + kLanes <= in_features; k += kLanes) {
    const Lanes value = Lanes::load(x + k);
    for (int r = 0; r < R; ++r) sums[r].add_product(value, Lanes::load(a + r * stride + k));
  }
  for (int r = 0; r < R; ++r) {
    float lane[kLanes];
    sums[r].store(lane);
    for (int64_t i = k; i < in_features; ++i) {
      lane[i - k] = multiply_add(a[r * stride + i], x[i], lane[i - k]);
    }
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    }
    h[r] = lane[0];
  }
}

template <typename Lanes>
void latent_generic(const Update& update, int64_t first_rank, int64_t ranks, const float* x,
                    int64_t in_features, float* h) {
  const int64_t stride = update.a_stride;
  const float* a = update.a + first_rank * stride;
  int64_t r = 0;
  for (; r + Lanes::kRanks <= ranks; r += Lanes::kRanks) {
    latent_ranks<Lanes, Lanes::kRanks>(a + r * stride, stride, x, in_features, h + r);
  }
  for (; r < ranks; ++r) latent_ranks<Lanes, 1>(a + r * stride, stride, x, in_features, h + r);
  if (update.latent_scale != nullptr) {
    for (r = 0; r < ranks; ++r) h[r] *= update.latent_scale[first_rank + r];
  }
}

template <typename Lanes, int V>
inline void finish_lanes(const Finish& finish, int64_t column, float* y) {
  const Update& update = *finish.update;
  Lanes out[V];
  for (int v = 0; v < V; ++v) out[v] = Lanes::load(y + v * kLanes);
  if (update.output_scale != nullptr) {
    const float* scale = update.output_scale + column;
    for (int v = 0; v < V; ++v) out[v].multiply(Lanes::load(scale + v * kLanes));
  }
  if (finish.latent != nullptr) {
    Lanes pair[V];
    for (int v = 0; v < V; ++v) pair[v] = Lanes::broadcast(0.0f);
    const float* b = update.b + column;
    for (int64_t r = 0; r < update.rank; ++r, b += update.b_stride) {
      const Lanes h = Lanes::broadcast(finish.latent[r]);
      for (int v = 0; v < V; ++v) pair[v].add_product(h, Lanes::load(b + v * kLanes));
    }
    if (update.pair_scale != nullptr) {
      const float* scale = update.pair_scale + column;
      for (int v = 0; v < V; ++v) pair[v].multiply(Lanes::load(scale + v * kLanes));
    }
    for (int v = 0; v < V; ++v) out[v].add(pair[v]);
  }
  for (const float* shift : {update.output_shift, finish.bias}) {
    if (shift == nullptr) continue;
    for (int v = 0; v < V; ++v) out[v].add(Lanes::load(shift + column + v * kLanes));
  }
  for (int v = 0; v < V; ++v) out[v].store(y + v * kLanes);
}

inline void finish_column(const Finish& finish, int64_t column, float* y) {
  const Update& update = *finish.update;
  if (update.output_scale != nullptr) *y *= update.output_scale[column];
  if (finish.latent != nullptr) {
    float pair = 0.0f;
    for (int64_t r = 0; r < update.rank; ++r) {
      pair = multiply_add(finish.latent[r], update.b[r * update.b_stride + column], pair);
    }
    if (update.pair_scale != nullptr) pair *= update.pair_scale[column];
    *y += pair;
  }
  if (update.output_shift != nullptr) *y += update.output_shift[column];
  if (finish.bias != nullptr) *y += finish.bias[column];
}

template <typename Lanes>
void finish_generic(const Finish& finish, float* y) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= finish.count; i += 4 * kLanes) {
    finish_lanes<Lanes, 4>(finish, finish.column + i, y + i);
  }
  for (; i + kLanes <= finish.count; i += kLanes) {
    finish_lanes<Lanes, 1>(finish, finish.column + i, y + i);
  }
  for (; i < finish.count; ++i) finish_column(finish, finish.column + i, y + i);
}

}  // namespace
}  // namespace paretune
