// The frozen base weight of one op, prepared for a variant: pointers into ONNX Runtime's own tensor
// plus whatever is small enough to decode ahead of time (scales, the integer codebook).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "variant.h"

namespace paretune {

enum class Format { kF32, kBf16, kCodes };
enum class Precision { kExact, kFast };

// The 4-bit side inputs as they lie in ONNX Runtime's tensors.
struct CodeTensors {
  const void* absmax = nullptr;  // uint8 codes when `nested`, else float
  size_t absmax_count = 0;
  const float* codebook = nullptr;  // 16
  const float* nested_absmax = nullptr;
  size_t nested_count = 0;
  const float* nested_codebook = nullptr;  // 256
  const float* nested_offset = nullptr;    // 1
};

struct Weight {
  Format format = Format::kF32;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t block_size = kBlock;
  const void* data = nullptr;

  // 4-bit only. Scales are [panel][block of a row][column of the panel] when blocks do not straddle
  // rows and the variant can walk them (`aligned`), else one per block of the flat weight.
  bool aligned = false;
  std::vector<float> scales;
  float codebook[16] = {};
  IntegerCodebook integer = {};
};

// step and offset that bring step * q + offset closest to the codebook with q in [-128, 127]: a
// grid over the scale and the phase of the rounding, least squares for step and offset at each
// point.
IntegerCodebook fit_codebook(const float* codebook);

// Fills the 4-bit members of `weight`; format, shape, block size and data are set by the caller,
// who has checked the lengths.
void prepare_codes(const CodeTensors& tensors, Precision precision, const Variant& variant,
                   Weight* weight);

// Scalar decode of panel columns [column, column + available) and inputs [k, k + depth) when blocks
// straddle rows or rows start in the middle of a byte.
void load_straddling(const Weight& weight, int64_t column, int available, int64_t k, int depth,
                     int columns, float* panel);

}  // namespace paretune
