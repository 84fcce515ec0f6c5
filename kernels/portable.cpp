// The portable variant: plain C++ that any compiler turns into correct, reasonably fast code.

#include <cstring>

#include "rowwise.h"
#include "variant.h"

namespace paretune {
namespace {

constexpr int kColumns = 16;
constexpr int kRows = 4;

struct Lanes {
  static constexpr int kRanks = 2;
  float lane[kLanes];
  static Lanes broadcast(float value) {
    Lanes result;
    for (float& element : result.lane) element = value;
    return result;
  }
  static Lanes load(const float* from) {
    Lanes result;
    std::memcpy(result.lane, from, sizeof(result.lane));
    return result;
  }
  void store(float* to) const { std::memcpy(to, lane, sizeof(lane)); }
  void add(const Lanes& other) {
    for (int i = 0; i < kLanes; ++i) lane[i] += other.lane[i];
  }
  void multiply(const Lanes& other) {
    for (int i = 0; i < kLanes; ++i) lane[i] *= other.lane[i];
  }
  void add_product(const Lanes& a, const Lanes& b) {
    for (int i = 0; i < kLanes; ++i) lane[i] = multiply_add(a.lane[i], b.lane[i], lane[i]);
  }
};

void load_f32(const float* weight, size_t stride, int available, int depth, float* panel) {
  for (int k = 0; k < depth; ++k) {
    for (int n = 0; n < kColumns; ++n) {
      panel[k * kColumns + n] = n < available ? weight[n * stride + k] : 0.0f;
    }
  }
}

void load_bf16(const uint16_t* weight, size_t stride, int available, int depth, float* panel) {
  for (int k = 0; k < depth; ++k) {
    for (int n = 0; n < kColumns; ++n) {
      const uint32_t bits =
          n < available ? static_cast<uint32_t>(weight[n * stride + k]) << 16 : 0u;
      panel[k * kColumns + n] = from_bits(bits);
    }
  }
}

void load_codes(const uint8_t* codes, size_t stride, int available, int depth,
                const float* codebook, const float* scales, int block_size, float* panel) {
  for (int n = 0; n < kColumns; ++n) {
    const uint8_t* row = codes + (n < available ? n : 0) * stride;
    for (int k = 0; k < depth; k += 2) {
      const float scale = scales[k / block_size * kColumns + n];
      const uint8_t pair = row[k / 2];
      panel[k * kColumns + n] = codebook[pair >> 4] * scale;
      panel[(k + 1) * kColumns + n] = codebook[pair & 15] * scale;
    }
  }
}

void load_int8(const uint8_t* codes, size_t stride, int available, int blocks, const int8_t* table,
               uint8_t* panel) {
  for (int n = 0; n < kColumns; ++n) {
    const uint8_t* row = codes + (n < available ? n : 0) * stride;
    for (int group = 0; group < blocks * (kBlock / 8); ++group) {
      for (int i = 0; i < 4; ++i) {
        const uint8_t pair = row[group * 4 + i];
        uint8_t* even = panel + (group * 2 * kColumns + n) * 4 + i;
        even[0] = static_cast<uint8_t>(table[pair >> 4]);
        even[kColumns * 4] = static_cast<uint8_t>(table[pair & 15]);
      }
    }
  }
}

template <int R>
void multiply_f32_rows(int depth, const float* x, const float* panel, bool first, float* y,
                       size_t y_stride, int available) {
  float sums[R][kColumns] = {};
  if (!first) {
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < available; ++n) sums[r][n] = y[r * y_stride + n];
    }
  }
  for (int k = 0; k < depth; ++k) {
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < kColumns; ++n) {
        sums[r][n] = multiply_add(x[k * R + r], panel[k * kColumns + n], sums[r][n]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < available; ++n) y[r * y_stride + n] = sums[r][n];
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
      return multiply_f32_rows<4>(depth, x, panel, first, y, y_stride, available);
  }
}

inline void dot_word(const int8_t* weight, uint32_t word, int32_t* sums) {
  int8_t q[4];
  std::memcpy(q, &word, sizeof(q));
  for (int n = 0; n < kColumns; ++n) {
    sums[n] += weight[n * 4] * q[0] + weight[n * 4 + 1] * q[1] + weight[n * 4 + 2] * q[2] +
               weight[n * 4 + 3] * q[3];
  }
}

void multiply_int8(int rows, int blocks, const uint32_t* words, const BlockHeader* headers,
                   const uint8_t* panel, const float* scales, bool first, float* y, size_t y_stride,
                   int available) {
  constexpr int kWordBytes = kColumns * 4;
  for (int block = 0; block < blocks; ++block) {
    const auto* weight = reinterpret_cast<const int8_t*>(panel) + block * kBlockWords * kWordBytes;
    for (int r = 0; r < rows; ++r) {
      const BlockHeader& header = headers[block * rows + r];
      int32_t sums[kColumns] = {};
      int32_t high[kColumns] = {};
      for (int word = 0; word < kBlockWords; ++word) {
        dot_word(weight + word * kWordBytes, words[(block * kBlockWords + word) * rows + r], sums);
      }
      dot_word(weight + header.outlier_word * kWordBytes,
               static_cast<uint32_t>(header.outlier_high), high);
      float* out = y + r * y_stride;
      for (int n = 0; n < available; ++n) {
        const float sum = static_cast<float>(sums[n] + high[n] * 128);
        const float value = multiply_add(sum, header.scale, header.offset);
        const float start = first && block == 0 ? 0.0f : out[n];
        out[n] = multiply_add(value, scales[block * kColumns + n], start);
      }
    }
  }
}

}  // namespace

const Variant kPortable = {
    "portable",
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
