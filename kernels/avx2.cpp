// The AVX2 + FMA variant: panels of 16 columns, two vectors wide.

#include <immintrin.h>

#include "rowwise.h"
#include "variant.h"

namespace paretune {
namespace {

constexpr int kColumns = 16;
constexpr int kHalf = 8;
constexpr int kRows = 4;

struct Lanes {
  static constexpr int kRanks = 4;
  __m256 low, high;
  static inline Lanes broadcast(float value) {
    return {_mm256_set1_ps(value), _mm256_set1_ps(value)};
  }
  static inline Lanes load(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
  inline void store(float* to) const {
    _mm256_storeu_ps(to, low);
    _mm256_storeu_ps(to + 8, high);
  }
  inline void add(const Lanes& other) {
    low = _mm256_add_ps(low, other.low);
    high = _mm256_add_ps(high, other.high);
  }
  inline void multiply(const Lanes& other) {
    low = _mm256_mul_ps(low, other.low);
    high = _mm256_mul_ps(high, other.high);
  }
  inline void add_product(const Lanes& a, const Lanes& b) {
    low = _mm256_fmadd_ps(a.low, b.low, low);
    high = _mm256_fmadd_ps(a.high, b.high, high);
  }
};

// Byte pointers to the 8 weight rows of half a panel. Missing columns repeat the last one: their
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

inline void store(void* to, __m256i v) { _mm256_store_si256(static_cast<__m256i*>(to), v); }

// Q * 16 bytes of 8 rows -> 4 Q vectors, vector d = the d-th 32-bit word of each row. Rows are read
// in the outer loop: with a row stride of 4096 bytes all of them fall into one cache set.
template <int Q>
inline void load_words(const HalfPanel& half, size_t offset, __m256i* words) {
  __m256i in[Q][4];
  for (int i = 0; i < 4; ++i) {
    for (int q = 0; q < Q; ++q) {
      in[q][i] =
          _mm256_inserti128_si256(_mm256_castsi128_si256(load128(half.row[i] + offset + q * 16)),
                                  load128(half.row[4 + i] + offset + q * 16), 1);
    }
  }
  for (int q = 0; q < Q; ++q) {
    const __m256i t0 = _mm256_unpacklo_epi32(in[q][0], in[q][1]);
    const __m256i t1 = _mm256_unpackhi_epi32(in[q][0], in[q][1]);
    const __m256i t2 = _mm256_unpacklo_epi32(in[q][2], in[q][3]);
    const __m256i t3 = _mm256_unpackhi_epi32(in[q][2], in[q][3]);
    words[4 * q] = _mm256_unpacklo_epi64(t0, t2);
    words[4 * q + 1] = _mm256_unpackhi_epi64(t0, t2);
    words[4 * q + 2] = _mm256_unpacklo_epi64(t1, t3);
    words[4 * q + 3] = _mm256_unpackhi_epi64(t1, t3);
  }
}

void load_f32(const float* weight, size_t stride, int available, int depth, float* panel) {
  for (int start = 0; start < kColumns; start += kHalf) {
    const int first = start < available ? start : 0;
    const HalfPanel half = half_panel(weight + first * stride, stride * 4, available - first);
    float* to = panel + start;
    int k = 0;
    for (; k + 8 <= depth; k += 8) {
      __m256i words[8];
      load_words<2>(half, k * 4, words);
      for (int d = 0; d < 8; ++d) store(to + (k + d) * kColumns, words[d]);
    }
    for (; k < depth; ++k) {
      for (int n = 0; n < kHalf; ++n) {
        std::memcpy(to + k * kColumns + n, half.row[n] + k * 4, 4);
      }
    }
  }
}

void load_bf16(const uint16_t* weight, size_t stride, int available, int depth, float* panel) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  for (int start = 0; start < kColumns; start += kHalf) {
    const int first = start < available ? start : 0;
    const HalfPanel half = half_panel(weight + first * stride, stride * 2, available - first);
    float* to = panel + start;
    int k = 0;
    for (; k + 16 <= depth; k += 16) {
      __m256i words[8];
      load_words<2>(half, k * 2, words);
      for (int d = 0; d < 8; ++d) {
        float* pair = to + (k + 2 * d) * kColumns;
        store(pair, _mm256_slli_epi32(words[d], 16));
        store(pair + kColumns, _mm256_and_si256(words[d], high));
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

// 16 table entries by the low four bits of each lane; bit 3 chooses between the two halves.
inline __m256 look_up(__m256i code, __m256 low, __m256 high) {
  const __m256 pick_high = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, code), _mm256_permutevar8x32_ps(high, code),
                          pick_high);
}

void load_codes(const uint8_t* codes, size_t stride, int available, int depth,
                const float* codebook, const float* scales, int block_size, float* panel) {
  const __m256 low = _mm256_loadu_ps(codebook);
  const __m256 high = _mm256_loadu_ps(codebook + 8);
  for (int start = 0; start < kColumns; start += kHalf) {
    const int first = start < available ? start : 0;
    const HalfPanel half = half_panel(codes + first * stride, stride, available - first);
    for (int k = 0; k < depth; k += 32) {
      const __m256 scale = _mm256_loadu_ps(scales + k / block_size * kColumns + start);
      __m256i words[4];
      load_words<1>(half, k / 2, words);
      float* to = panel + k * kColumns + start;
      for (int d = 0; d < 4; ++d) {
        for (int byte = 0; byte < 4; ++byte) {
          const __m256i even = _mm256_srli_epi32(words[d], byte * 8 + 4);
          const __m256i odd = _mm256_srli_epi32(words[d], byte * 8);
          _mm256_store_ps(to, _mm256_mul_ps(look_up(even, low, high), scale));
          _mm256_store_ps(to + kColumns, _mm256_mul_ps(look_up(odd, low, high), scale));
          to += 2 * kColumns;
        }
      }
    }
  }
}

void load_int8(const uint8_t* codes, size_t stride, int available, int blocks, const int8_t* table,
               uint8_t* panel) {
  const __m256i lookup =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  const __m256i low = _mm256_set1_epi8(15);
  for (int start = 0; start < kColumns; start += kHalf) {
    const int first = start < available ? start : 0;
    const HalfPanel half = half_panel(codes + first * stride, stride, available - first);
    uint8_t* to = panel + start * 4;
    for (int block = 0; block < blocks; ++block) {
      __m256i words[8];
      load_words<2>(half, block * (kBlock / 2), words);
      for (int d = 0; d < 8; ++d) {
        const __m256i even = _mm256_and_si256(_mm256_srli_epi16(words[d], 4), low);
        const __m256i odd = _mm256_and_si256(words[d], low);
        store(to, _mm256_shuffle_epi8(lookup, even));
        store(to + kColumns * 4, _mm256_shuffle_epi8(lookup, odd));
        to += 2 * kColumns * 4;
      }
    }
  }
}

inline __m256i column_mask(int available) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(available), lane);
}

template <int R>
void multiply_f32_rows(int depth, const float* x, const float* panel, bool first, float* y,
                       size_t y_stride, int available) {
  const __m256i masks[2] = {column_mask(available), column_mask(available - kHalf)};
  __m256 sums[R][2];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) {
      sums[r][v] =
          first ? _mm256_setzero_ps() : _mm256_maskload_ps(y + r * y_stride + v * kHalf, masks[v]);
    }
  }
  for (int k = 0; k < depth; ++k) {
    const __m256 w0 = _mm256_load_ps(panel + k * kColumns);
    const __m256 w1 = _mm256_load_ps(panel + k * kColumns + kHalf);
    for (int r = 0; r < R; ++r) {
      const __m256 value = _mm256_set1_ps(x[k * R + r]);
      sums[r][0] = _mm256_fmadd_ps(value, w0, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(value, w1, sums[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) {
      _mm256_maskstore_ps(y + r * y_stride + v * kHalf, masks[v], sums[r][v]);
    }
  }
}

// sum + four products per lane. Neither magnitude exceeds 128, so no pair of products saturates 16
// bits.
inline __m256i dot_words(__m256i sum, __m256i magnitude, __m256i weight, __m256i value) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(value, weight));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <int R>
void multiply_int8_rows(int blocks, const uint32_t* words, const BlockHeader* headers,
                        const uint8_t* panel, const float* scales, bool first, float* y,
                        size_t y_stride, int available) {
  constexpr int kWordBytes = kColumns * 4;
  const __m256i masks[2] = {column_mask(available), column_mask(available - kHalf)};
  for (int block = 0; block < blocks; ++block) {
    __m256i sums[R][2];
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
    for (int word = 0; word < kBlockWords; ++word) {
      const auto* at = reinterpret_cast<const __m256i*>(panel + word * kWordBytes);
      const __m256i w0 = _mm256_load_si256(at);
      const __m256i w1 = _mm256_load_si256(at + 1);
      const __m256i m0 = _mm256_abs_epi8(w0);
      const __m256i m1 = _mm256_abs_epi8(w1);
      for (int r = 0; r < R; ++r) {
        const __m256i value = _mm256_set1_epi32(static_cast<int>(words[word * R + r]));
        sums[r][0] = dot_words(sums[r][0], m0, w0, value);
        sums[r][1] = dot_words(sums[r][1], m1, w1, value);
      }
    }
    for (int r = 0; r < R; ++r) {
      const BlockHeader& header = headers[r];
      const auto* outlier =
          reinterpret_cast<const __m256i*>(panel + header.outlier_word * kWordBytes);
      const __m256i high = _mm256_set1_epi32(header.outlier_high);
      for (int v = 0; v < 2; ++v) {
        const __m256i weight = _mm256_load_si256(outlier + v);
        const __m256i part =
            dot_words(_mm256_setzero_si256(), _mm256_abs_epi8(weight), weight, high);
        const __m256i sum = _mm256_add_epi32(sums[r][v], _mm256_slli_epi32(part, 7));
        const __m256 value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(header.scale),
                                             _mm256_set1_ps(header.offset));
        float* out = y + r * y_stride + v * kHalf;
        const __m256 start =
            first && block == 0 ? _mm256_setzero_ps() : _mm256_maskload_ps(out, masks[v]);
        _mm256_maskstore_ps(out, masks[v],
                            _mm256_fmadd_ps(value, _mm256_loadu_ps(scales + v * kHalf), start));
      }
    }
    words += kBlockWords * R;
    headers += R;
    panel += kBlockWords * kWordBytes;
    scales += kColumns;
  }
}

void multiply_f32(int rows, int depth, const float* x, const float* panel, bool first, float* y,
                  size_t y_stride, int available) {
  switch (rows) {
    case 1:
      return multiply_f32_rows<1>(depth, x, panel, first, y, y_stride, available);
    case 2:
      return multiply_f32_rows<2>(depth, x, panel, first, y, y_stride, available);
    case 3:
      return multiply_f32_rows<3>(depth, x, panel, first, y, y_stride, available);
    default:
      return multiply_f32_rows<kRows>(depth, x, panel, first, y, y_stride, available);
  }
}

void multiply_int8(int rows, int blocks, const uint32_t* words, const BlockHeader* headers,
                   const uint8_t* panel, const float* scales, bool first, float* y, size_t y_stride,
                   int available) {
  const auto multiply = rows == 1   ? multiply_int8_rows<1>
                        : rows == 2 ? multiply_int8_rows<2>
                        : rows == 3 ? multiply_int8_rows<3>
                                    : multiply_int8_rows<kRows>;
  multiply(blocks, words, headers, panel, scales, first, y, y_stride, available);
}

}  // namespace

const Variant kAvx2 = {
    "avx2",
    kColumns,
    kRows,
    load_f32,
    load_bf16,
    load_codes,
    multiply_f32,
    load_int8,
    quantize_row_generic<false>,
    multiply_int8,
    nullptr,
    latent_generic<Lanes>,
    finish_generic<Lanes>,
};

}  // namespace paretune
