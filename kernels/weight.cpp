// Compiled without contraction (see CMakeLists.txt): scales and the integer codebook must equal,
// bit for bit, what the torch reference and bitsandbytes compute with separate multiply and add.

#include "weight.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace paretune {
namespace {

constexpr int64_t kNestedBlock = 256;

std::vector<float> decode_scales(const CodeTensors& tensors) {
  std::vector<float> scales(tensors.absmax_count);
  if (tensors.nested_codebook == nullptr) {
    if (!scales.empty()) std::memcpy(scales.data(), tensors.absmax, scales.size() * sizeof(float));
    return scales;
  }
  const auto* codes = static_cast<const uint8_t*>(tensors.absmax);
  for (size_t block = 0; block < scales.size(); ++block) {
    const float nested = tensors.nested_codebook[codes[block]];
    scales[block] = nested * tensors.nested_absmax[block / kNestedBlock] + *tensors.nested_offset;
  }
  return scales;
}

std::vector<float> panel_scales(const std::vector<float>& flat, const Weight& weight,
                                int64_t columns) {
  const int64_t panels = (weight.out_features + columns - 1) / columns;
  const int64_t blocks = weight.in_features / weight.block_size;
  std::vector<float> scales(static_cast<size_t>(panels * blocks * columns), 0.0f);
  for (int64_t n = 0; n < weight.out_features; ++n) {
    for (int64_t block = 0; block < blocks; ++block) {
      scales[(n / columns * blocks + block) * columns + n % columns] = flat[n * blocks + block];
    }
  }
  return scales;
}

struct Fit {
  double error;
  double step;
  double offset;
};

Fit fit_line(const double* q, const double* value) {
  double sum_q = 0, sum_v = 0, sum_qq = 0, sum_qv = 0;
  for (int i = 0; i < 16; ++i) {
    sum_q += q[i];
    sum_v += value[i];
    sum_qq += q[i] * q[i];
    sum_qv += q[i] * value[i];
  }
  const double spread = 16.0 * sum_qq - sum_q * sum_q;
  Fit fit{0.0, 0.0, sum_v / 16.0};
  if (spread > 0.0) {
    fit.step = (16.0 * sum_qv - sum_q * sum_v) / spread;
    fit.offset = (sum_v - fit.step * sum_q) / 16.0;
  }
  for (int i = 0; i < 16; ++i) {
    const double residual = value[i] - (fit.step * q[i] + fit.offset);
    fit.error += residual * residual;
  }
  return fit;
}

}  // namespace

IntegerCodebook fit_codebook(const float* codebook) {
  double value[16];
  double least = std::numeric_limits<double>::infinity();
  double most = -least;
  for (int i = 0; i < 16; ++i) {
    value[i] = codebook[i];
    least = value[i] < least ? value[i] : least;
    most = value[i] > most ? value[i] : most;
  }
  IntegerCodebook best = {};
  best.offset = static_cast<float>(least);
  double error = std::numeric_limits<double>::infinity();
  if (!(most > least)) return best;
  // 254 steps and a phase below one keep every q within [-128, 127].
  for (int steps = 255; steps >= 128; --steps) {
    const double scale = steps / (most - least);
    for (int phase = 0; phase < (steps == 255 ? 1 : 16); ++phase) {
      double q[16];
      for (int i = 0; i < 16; ++i) {
        q[i] = std::floor((value[i] - least) * scale + phase / 16.0 + 0.5) - 128.0;
      }
      const Fit fit = fit_line(q, value);
      if (!(fit.error < error)) continue;
      error = fit.error;
      best.step = static_cast<float>(fit.step);
      best.offset = static_cast<float>(fit.offset);
      for (int i = 0; i < 16; ++i) best.table[i] = static_cast<int8_t>(q[i]);
    }
  }
  return best;
}

void prepare_codes(const CodeTensors& tensors, Precision precision, const Variant& variant,
                   Weight* weight) {
  const int64_t block = weight->block_size;
  weight->aligned =
      precision == Precision::kFast
          ? block == kBlock && weight->in_features % kBlock == 0
          : block % 32 == 0 && kExactDepth % block == 0 && weight->in_features % block == 0;
  std::vector<float> flat = decode_scales(tensors);
  weight->scales = weight->aligned ? panel_scales(flat, *weight, variant.columns) : std::move(flat);
  std::memcpy(weight->codebook, tensors.codebook, sizeof(weight->codebook));
  if (precision == Precision::kExact) return;
  weight->integer = fit_codebook(tensors.codebook);
  for (int i = 0; i < 16; ++i) {
    weight->codebook[i] = weight->integer.step * static_cast<float>(weight->integer.table[i]) +
                          weight->integer.offset;
  }
}

void load_straddling(const Weight& weight, int64_t column, int available, int64_t k, int depth,
                     int columns, float* panel) {
  const auto* codes = static_cast<const uint8_t*>(weight.data);
  for (int n = 0; n < columns; ++n) {
    const int64_t start = (column + (n < available ? n : 0)) * weight.in_features + k;
    for (int i = 0; i < depth; ++i) {
      const int64_t index = start + i;
      const uint8_t pair = codes[index / 2];
      const int code = index % 2 == 0 ? pair >> 4 : pair & 15;
      panel[i * columns + n] = weight.codebook[code] * weight.scales[index / weight.block_size];
    }
  }
}

}  // namespace paretune
