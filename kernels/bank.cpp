#include "bank.h"

#include <cstring>
#include <string>

#include "error.h"

namespace paretune {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHeaderBytes = 64;
constexpr int64_t kVersion = 1;
constexpr int64_t kEntryFields = 12;
constexpr int64_t kEntryBytes = kEntryFields * 8;

// offset + count * size <= limit for values an attacker chooses, without overflow.
bool fits(int64_t offset, int64_t count, int64_t size, int64_t limit) {
  return offset >= 0 && offset <= limit && count >= 0 && count <= (limit - offset) / size;
}

// floats spanned by `rows` rows of `width` that start `stride` apart; -1 when it overflows.
int64_t span(int64_t rows, int64_t stride, int64_t width) {
  int64_t result = 0;
  if (__builtin_mul_overflow(rows - 1, stride, &result)) return -1;
  if (__builtin_add_overflow(result, width, &result)) return -1;
  return result;
}

}  // namespace

Bank::Bank(const uint8_t* data, size_t bytes) : data_(data) {
  require(bytes >= kHeaderBytes, "bank is truncated: shorter than its header of 64 bytes");
  require(reinterpret_cast<uintptr_t>(data) % alignof(int64_t) == 0,
          "bank is not aligned: its first byte must lie on a multiple of 8");
  require(std::memcmp(data, "PTRNBANK", 8) == 0, "bank has no PTRNBANK header");
  int64_t header[8];
  std::memcpy(header, data, sizeof(header));
  if (header[1] != kVersion) {
    throw OpError("bank version is not 1: " + std::to_string(header[1]));
  }
  slot_capacity_ = header[2];
  site_count_ = header[3];
  bytes_ = header[4];
  row_table_ = header[5];
  if (bytes_ < kHeaderBytes || static_cast<uint64_t>(bytes_) > bytes) {
    throw OpError("bank is truncated: header says " + std::to_string(bytes_) +
                  " bytes, tensor has " + std::to_string(bytes));
  }
  require(site_count_ >= 0 && row_table_ % kAlignment == 0 &&
              fits(row_table_, slot_capacity_, 8, bytes_),
          "bank is corrupt: its row table lies outside the bank");
}

int64_t Bank::read(int64_t offset) const {
  int64_t value;
  std::memcpy(&value, data_ + offset, sizeof(value));
  return value;
}

const float* Bank::part(int64_t offset, int64_t floats) const {
  if (offset == 0) return nullptr;
  if (offset % kAlignment != 0 || !fits(offset, floats, sizeof(float), bytes_)) {
    throw OpError("bank is corrupt: a tensor at offset " + std::to_string(offset) +
                  " lies outside the bank");
  }
  return reinterpret_cast<const float*>(data_ + offset);
}

Update Bank::update(int64_t slot, int64_t site, int64_t out_features, int64_t in_features) const {
  if (slot < 0 || slot >= slot_capacity_) {
    throw OpError("slot " + std::to_string(slot) + " is out of range: the bank has " +
                  std::to_string(slot_capacity_) + " slots");
  }
  if (site < 0 || site >= site_count_) {
    throw OpError("site " + std::to_string(site) + " is out of range: the bank has " +
                  std::to_string(site_count_) + " sites");
  }
  const int64_t directory = read(row_table_ + slot * 8);
  if (directory == 0) throw OpError("slot " + std::to_string(slot) + " is empty");
  if (directory % kAlignment != 0 || !fits(directory, site_count_, kEntryBytes, bytes_)) {
    throw OpError("bank is corrupt: the directory of slot " + std::to_string(slot) +
                  " lies outside the bank");
  }
  int64_t entry[kEntryFields];
  std::memcpy(entry, data_ + directory + site * kEntryBytes, sizeof(entry));

  Update update;
  update.rank = entry[0];
  require(update.rank >= 0, "bank is corrupt: negative rank");
  if (update.rank > 0) {
    update.a_stride = entry[2];
    update.b_stride = entry[4];
    require(entry[1] != 0 && entry[3] != 0 && update.a_stride >= in_features &&
                update.b_stride >= out_features,
            "bank is corrupt: a low-rank pair lacks a factor or its stride is too short");
    update.a = part(entry[1], span(update.rank, update.a_stride, in_features));
    update.b = part(entry[3], span(update.rank, update.b_stride, out_features));
    update.latent_scale = part(entry[8], update.rank);
    update.pair_scale = part(entry[9], out_features);
  }
  update.output_scale = part(entry[5], out_features);
  update.input_scale = part(entry[6], in_features);
  update.output_shift = part(entry[7], out_features);
  return update;
}

}  // namespace paretune
