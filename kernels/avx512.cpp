// The AVX-512 variant (F, BW, DQ, VL, VNNI): panels of 32 columns, two vectors wide.

#include <immintrin.h>

#include "rowwise.h"
#include "variant.h"

namespace paretune {
namespace {

// An array indexed by a loop that stays rolled would live in memory instead of in registers.
#define PARETUNE_UNROLL _Pragma("GCC unroll 16")

constexpr int kColumns = 32;
constexpr int kHalf = 16;
constexpr int kRows = 12;

struct Lanes {
  static constexpr int kRanks = 8;
  __m512 v;
  static inline Lanes broadcast(float value) { return {_mm512_set1_ps(value)}; }
  static inline Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
  inline void store(float* to) const { _mm512_storeu_ps(to, v); }
  inline void add(Lanes other) { v = _mm512_add_ps(v, other.v); }
  inline void multiply(Lanes other) { v = _mm512_mul_ps(v, other.v); }
  inline void add_product(Lanes a, Lanes b) { v = _mm512_fmadd_ps(a.v, b.v, v); }
};

// Byte pointers to the 16 weight rows of half a panel. Missing columns repeat the last one: their
// lanes are computed and never stored.
struct HalfPanel {
  const uint8_t* row[kHalf];
};

inline HalfPanel half_panel(const void* weight, size_t stride_bytes, int available) {
  HalfPanel half;
  for (int n = 0; n < kHalf; ++n) {
    half.row[n] =
        static_cast<const uint8_t*>(weight) + (n < available ? n : available - 1) * stride_bytes;
  }
  return half;
}

inline __m128i load128(const uint8_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// Columns i, 4+i, 8+i, 12+i, one per 128-bit lane.
inline __m512i load_quad(const HalfPanel& half, int i, size_t offset) {
  __m512i v = _mm512_castsi128_si512(load128(half.row[i] + offset));
  v = _mm512_inserti32x4(v, load128(half.row[4 + i] + offset), 1);
  v = _mm512_inserti32x4(v, load128(half.row[8 + i] + offset), 2);
  return _mm512_inserti32x4(v, load128(half.row[12 + i] + offset), 3);
}

inline void transpose_quad(const __m512i* in, __m512i* out) {
  const __m512i t0 = _mm512_unpacklo_epi32(in[0], in[1]);
  const __m512i t1 = _mm512_unpackhi_epi32(in[0], in[1]);
  const __m512i t2 = _mm512_unpacklo_epi32(in[2], in[3]);
  const __m512i t3 = _mm512_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm512_unpacklo_epi64(t0, t2);
  out[1] = _mm512_unpackhi_epi64(t0, t2);
  out[2] = _mm512_unpacklo_epi64(t1, t3);
  out[3] = _mm512_unpackhi_epi64(t1, t3);
}

// Q * 16 bytes of 16 rows -> 4 Q vectors, vector d = the d-th 32-bit word of each row. Rows are
// read in the outer loop: with a row stride of 4096 bytes all 16 fall into one cache set.
template <int Q>
inline void load_words(const HalfPanel& half, size_t offset, __m512i* words) {
  __m512i in[Q][4];
  for (int i = 0; i < 4; ++i) {
    for (int q = 0; q < Q; ++q) in[q][i] = load_quad(half, i, offset + q * 16);
  }
  for (int q = 0; q < Q; ++q) transpose_quad(in[q], words + 4 * q);
}

// The hardware follows sixteen rows at once only partly; two lines ahead is enough to help it. A
// prefetch never faults, so running past the end of the weight is harmless.
inline void prefetch_rows(const HalfPanel& half, size_t offset) {
  for (int n = 0; n < kHalf; ++n) {
    _mm_prefetch(reinterpret_cast<const char*>(half.row[n]) + offset + 128, _MM_HINT_T0);
  }
}

void load_f32(const float* weight, size_t stride, int available, int depth, float* panel) {
  for (int start = 0; start < kColumns; start += kHalf) {
    const int first = start < available ? start : 0;
    const HalfPanel half = half_panel(weight + first * stride, stride * 4, available - first);
    float* to = panel + start;
    int k = 0;
    for (; k + 16 <= depth; k += 16) {
      __m512i words[16];
      load_words<4>(half, k * 4, words);
      for (int d = 0; d < 16; ++d) _mm512_store_si512(to + (k + d) * kColumns, words[d]);
    }
    for (; k < depth; ++k) {
      for (int n = 0; n < kHalf; ++n) {
        std::memcpy(to + k * kColumns + n, half.row[n] + k * 4, 4);
      }
    }
  }
}

void load_bf16(const uint16_t* weight, size_t stride, int available, int depth, float* panel) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int start = 0; start < kColumns; start += kHalf) {
    const int first = start < available ? start : 0;
    const HalfPanel half = half_panel(weight + first * stride, stride * 2, available - first);
    float* to = panel + start;
    int k = 0;
    for (; k + 32 <= depth; k += 32) {
      __m512i words[16];
      prefetch_rows(half, k * 2);
      load_words<4>(half, k * 2, words);
      for (int d = 0; d < 16; ++d) {
        float* pair = to + (k + 2 * d) * kColumns;
        _mm512_store_si512(pair, _mm512_slli_epi32(words[d], 16));
        _mm512_store_si512(pair + kColumns, _mm512_and_si512(words[d], high));
      }
    }
    for (; k < depth; ++k) {
      for (int n = 0; n < kHalf; ++n) {
        uint16_t bits;
        std::memcpy(&bits, half.row[n] + k * 2, 2);
        to[k * kColumns + n] = from_bits(static_cast<uint32_t>(bits) << 16);
      }
    }
  }
}

void load_codes(const uint8_t* codes, size_t stride, int available, int depth,
                const float* codebook, const float* scales, int block_size, float* panel) {
  const __m512 table = _mm512_loadu_ps(codebook);
  for (int start = 0; start < kColumns; start += kHalf) {
    const int first = start < available ? start : 0;
    const HalfPanel half = half_panel(codes + first * stride, stride, available - first);
    for (int k = 0; k < depth; k += 32) {
      const __m512 scale = _mm512_loadu_ps(scales + k / block_size * kColumns + start);
      __m512i words[4];
      if (k % 128 == 0) prefetch_rows(half, k / 2);
      load_words<1>(half, k / 2, words);
      float* to = panel + k * kColumns + start;
      for (int d = 0; d < 4; ++d) {
        // The permutation looks at the low four bits of each lane only.
        for (int byte = 0; byte < 4; ++byte) {
          const __m512i even = _mm512_srli_epi32(words[d], byte * 8 + 4);
          const __m512i odd = _mm512_srli_epi32(words[d], byte * 8);
          _mm512_store_ps(to, _mm512_mul_ps(_mm512_permutexvar_ps(even, table), scale));
          _mm512_store_ps(to + kColumns, _mm512_mul_ps(_mm512_permutexvar_ps(odd, table), scale));
          to += 2 * kColumns;
        }
      }
    }
  }
}

// Four-bit codes to the int8 table, moved up by 128: VNNI multiplies unsigned by signed.
struct Lookup {
  __m512i table;
  __m512i low;
  explicit Lookup(const int8_t* entries)
      : table(_mm512_broadcast_i32x4(_mm_xor_si128(
            load128(reinterpret_cast<const uint8_t*>(entries)), _mm_set1_epi8(-128)))),
        low(_mm512_set1_epi8(15)) {}
  inline __m512i odd(__m512i codes) const {
    return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low));
  }
  inline __m512i even(__m512i codes) const { return odd(_mm512_srli_epi16(codes, 4)); }
};

void load_int8(const uint8_t* codes, size_t stride, int available, int blocks, const int8_t* table,
               uint8_t* panel) {
  const Lookup lookup(table);
  for (int start = 0; start < kColumns; start += kHalf) {
    const int first = start < available ? start : 0;
    const HalfPanel half = half_panel(codes + first * stride, stride, available - first);
    uint8_t* to = panel + start * 4;
    for (int block = 0; block < blocks; ++block) {
      __m512i words[8];
      if (block % 2 == 0) prefetch_rows(half, block * (kBlock / 2));
      load_words<2>(half, block * (kBlock / 2), words);
      for (int d = 0; d < 8; ++d) {
        _mm512_store_si512(to, lookup.even(words[d]));
        _mm512_store_si512(to + kColumns * 4, lookup.odd(words[d]));
        to += 2 * kColumns * 4;
      }
    }
  }
}

struct Masks {
  __mmask16 half[2];
};

inline Masks column_masks(int available) {
  const uint32_t bits = available >= kColumns ? 0xffffffffu : (1u << available) - 1u;
  return {{static_cast<__mmask16>(bits), static_cast<__mmask16>(bits >> kHalf)}};
}

template <int R>
void multiply_f32_rows(int depth, const float* x, const float* panel, bool first, float* y,
                       size_t y_stride, int available) {
  const Masks masks = column_masks(available);
  __m512 sums[R][2];
  PARETUNE_UNROLL
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) {
      sums[r][v] = first ? _mm512_setzero_ps()
                         : _mm512_maskz_loadu_ps(masks.half[v], y + r * y_stride + v * kHalf);
    }
  }
  for (int k = 0; k < depth; ++k) {
    const __m512 w0 = _mm512_load_ps(panel + k * kColumns);
    const __m512 w1 = _mm512_load_ps(panel + k * kColumns + kHalf);
    PARETUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 value = _mm512_set1_ps(x[k * R + r]);
      sums[r][0] = _mm512_fmadd_ps(value, w0, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(value, w1, sums[r][1]);
    }
  }
  PARETUNE_UNROLL
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) {
      _mm512_mask_storeu_ps(y + r * y_stride + v * kHalf, masks.half[v], sums[r][v]);
    }
  }
}

// The intrinsic, written so that the accumulator is one register in and out: GCC 12 copies it at
// every step of a loop that holds more than sixteen, and spills.
inline void add_dot(__m512i& sum, __m512i weight, __m512i value) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(value));
}

// What one block adds to one row: its integer sums, the outlier's second digit, and the scales.
inline __m512 add_block(__m512 total, const BlockHeader& header, __m512i sum, __m512i outlier,
                        const float* scales) {
  const __m512i part = _mm512_dpbusd_epi32(_mm512_set1_epi32(header.outlier_correction), outlier,
                                           _mm512_set1_epi32(header.outlier_high));
  sum = _mm512_add_epi32(sum, _mm512_slli_epi32(part, 7));
  const __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(header.scale),
                                       _mm512_set1_ps(header.offset));
  return _mm512_fmadd_ps(value, _mm512_loadu_ps(scales), total);
}

template <int R>
void multiply_int8_rows(int blocks, const uint32_t* words, const BlockHeader* headers,
                        const uint8_t* panel, const float* scales, bool first, float* y,
                        size_t y_stride, int available) {
  constexpr int kWordBytes = kColumns * 4;
  const Masks masks = column_masks(available);
  // Not in y: its rows may be a multiple of 4096 bytes apart and evict each other once per block.
  __m512 totals[R][2];
  PARETUNE_UNROLL
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) {
      totals[r][v] = first ? _mm512_setzero_ps()
                           : _mm512_maskz_loadu_ps(masks.half[v], y + r * y_stride + v * kHalf);
    }
  }
  for (int block = 0; block < blocks; ++block) {
    __m512i sums[R][2];
    PARETUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      sums[r][0] = sums[r][1] = _mm512_set1_epi32(headers[r].correction);
    }
    for (int word = 0; word < kBlockWords; ++word) {
      const __m512i w0 = _mm512_load_si512(panel + word * kWordBytes);
      const __m512i w1 = _mm512_load_si512(panel + word * kWordBytes + 64);
      PARETUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m512i value = _mm512_set1_epi32(static_cast<int>(words[word * R + r]));
        add_dot(sums[r][0], w0, value);
        add_dot(sums[r][1], w1, value);
      }
    }
    PARETUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* outlier = panel + headers[r].outlier_word * kWordBytes;
      for (int v = 0; v < 2; ++v) {
        totals[r][v] = add_block(totals[r][v], headers[r], sums[r][v],
                                 _mm512_load_si512(outlier + v * 64), scales + v * kHalf);
      }
    }
    words += kBlockWords * R;
    headers += R;
    panel += kBlockWords * kWordBytes;
    scales += kColumns;
  }
  PARETUNE_UNROLL
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) {
      _mm512_mask_storeu_ps(y + r * y_stride + v * kHalf, masks.half[v], totals[r][v]);
    }
  }
}

// The integer sums of a block are exact in any order, so this gives the bits of load_int8 followed
// by multiply_int8_rows<1>; one row does not repay the detour through a panel in memory.
void multiply_codes(const uint8_t* codes, size_t stride, int available, int64_t blocks,
                    const int8_t* table, const uint32_t* words, const BlockHeader* headers,
                    const float* scales, float* y) {
  const Lookup lookup(table);
  const Masks masks = column_masks(available);
  for (int start = 0; start < available; start += kHalf) {
    const HalfPanel half = half_panel(codes + start * stride, stride, available - start);
    __m512 total = _mm512_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block) {
      const BlockHeader& header = headers[block];
      const uint32_t* x = words + block * kBlockWords;
      __m512i code[8];
      if (block % 2 == 0) prefetch_rows(half, block * (kBlock / 2));
      load_words<2>(half, block * (kBlock / 2), code);
      __m512i even = _mm512_set1_epi32(header.correction);
      __m512i odd = _mm512_setzero_si512();
      for (int d = 0; d < 8; ++d) {
        add_dot(even, lookup.even(code[d]), _mm512_set1_epi32(static_cast<int>(x[2 * d])));
        add_dot(odd, lookup.odd(code[d]), _mm512_set1_epi32(static_cast<int>(x[2 * d + 1])));
      }
      alignas(64) __m512i kept[8];
      for (int d = 0; d < 8; ++d) kept[d] = code[d];
      const __m512i near = kept[header.outlier_word / 2];
      const __m512i outlier = header.outlier_word % 2 == 0 ? lookup.even(near) : lookup.odd(near);
      total = add_block(total, header, _mm512_add_epi32(even, odd), outlier,
                        scales + block * kColumns + start);
    }
    _mm512_mask_storeu_ps(y + start, masks.half[start / kHalf], total);
  }
}

using MultiplyF32 = void (*)(int, const float*, const float*, bool, float*, size_t, int);
using MultiplyInt8 = void (*)(int, const uint32_t*, const BlockHeader*, const uint8_t*,
                              const float*, bool, float*, size_t, int);

constexpr MultiplyF32 kMultiplyF32[kRows] = {
    multiply_f32_rows<1>, multiply_f32_rows<2>,  multiply_f32_rows<3>,  multiply_f32_rows<4>,
    multiply_f32_rows<5>, multiply_f32_rows<6>,  multiply_f32_rows<7>,  multiply_f32_rows<8>,
    multiply_f32_rows<9>, multiply_f32_rows<10>, multiply_f32_rows<11>, multiply_f32_rows<12>,
};
constexpr MultiplyInt8 kMultiplyInt8[kRows] = {
    multiply_int8_rows<1>, multiply_int8_rows<2>,  multiply_int8_rows<3>,  multiply_int8_rows<4>,
    multiply_int8_rows<5>, multiply_int8_rows<6>,  multiply_int8_rows<7>,  multiply_int8_rows<8>,
    multiply_int8_rows<9>, multiply_int8_rows<10>, multiply_int8_rows<11>, multiply_int8_rows<12>,
};

void multiply_f32(int rows, int depth, const float* x, const float* panel, bool first, float* y,
                  size_t y_stride, int available) {
  kMultiplyF32[rows - 1](depth, x, panel, first, y, y_stride, available);
}

void multiply_int8(int rows, int blocks, const uint32_t* words, const BlockHeader* headers,
                   const uint8_t* panel, const float* scales, bool first, float* y, size_t y_stride,
                   int available) {
  kMultiplyInt8[rows - 1](blocks, words, headers, panel, scales, first, y, y_stride, available);
}

}  // namespace

const Variant kAvx512 = {
    "avx512",
    kColumns,
    kRows,
    load_f32,
    load_bf16,
    load_codes,
    multiply_f32,
    load_int8,
    quantize_row_generic<true>,
    multiply_int8,
    multiply_codes,
    latent_generic<Lanes>,
    finish_generic<Lanes>,
};

}  // namespace paretune
