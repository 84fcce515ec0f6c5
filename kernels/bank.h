// Reading tenants' updates out of the bank: a uint8 tensor that holds, for every slot, a directory
// of offsets to the adapter's tensors. The bank is an input of the graph, so nothing in it is
// trusted: every offset is checked against the tensor's length before a pointer is formed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace paretune {

// What one slot adds to one op: y = g * (W (l * x)) + e * (B (d * (A x))) + c. Null = absent.
struct Update {
  int64_t rank = 0;
  const float* a = nullptr;  // [rank, in_features], rows a_stride floats apart
  int64_t a_stride = 0;
  const float* b = nullptr;  // [rank, out_features] (transposed), rows b_stride floats apart
  int64_t b_stride = 0;
  const float* output_scale = nullptr;  // g, out_features
  const float* input_scale = nullptr;   // l, in_features
  const float* output_shift = nullptr;  // c, out_features
  const float* latent_scale = nullptr;  // d, rank
  const float* pair_scale = nullptr;    // e, out_features
};

class Bank {
 public:
  Bank(const uint8_t* data,
       size_t bytes);  // throws OpError when the header does not fit the tensor

  Update update(int64_t slot, int64_t site, int64_t out_features, int64_t in_features) const;

 private:
  int64_t read(int64_t offset) const;
  const float* part(int64_t offset, int64_t floats) const;

  const uint8_t* data_;
  int64_t bytes_ = 0;
  int64_t slot_capacity_ = 0;
  int64_t site_count_ = 0;
  int64_t row_table_ = 0;
};

}  // namespace paretune
