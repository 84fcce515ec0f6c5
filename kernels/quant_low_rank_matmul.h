// y = g * (W (l * x)) + e * (B (d * (A x))) + c + bias, each row with its own g, l, A, B, c, d, e.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bank.h"
#include "variant.h"
#include "weight.h"

namespace paretune {

// The host's thread pool: calls task(user, i) for every i in [0, total), in any order.
struct Pool {
  void* host;
  void (*run)(void* host, void (*task)(void* user, size_t index), size_t total, void* user);
};

struct Problem {
  const Variant* variant;
  const Weight* weight;
  Precision precision;
  const float* bias;  // null when absent
  int64_t rows;
  int64_t rows_per_update;  // row m uses updates[m / rows_per_update]
  const Update* updates;
  const float* x;  // [rows, in_features]
  float* y;        // [rows, out_features]
};

void quant_low_rank_matmul(const Problem& problem, const Pool& pool);

}  // namespace paretune
