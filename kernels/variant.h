// A variant implements the op's inner loops for one instruction set. Every variant works on the
// same units: a *panel* of `columns` output columns whose weights lie k-major, so that one vector
// lane is one column, and a *tile* of up to `rows` activation rows interleaved k-major.
//
// Lanes are columns, so each output is accumulated over k in order 0, 1, 2, ... by its own lane:
// whatever rows share its tile, and however columns are split among threads, its bits are the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bank.h"

namespace paretune {

constexpr int kExactDepth = 256;  // inputs per panel in exact mode
constexpr int kBlock = 64;        // inputs that share one activation scale in fast mode
constexpr int kBlockWords = 16;   // the same in words of four int8
constexpr int kMaxColumns = 32;   // widest panel of any variant
constexpr int kMaxRows = 12;      // tallest tile of any variant

// One block of one activation row in fast mode. x ~ scale * q with q int8, except the entry of
// largest magnitude, whose q = 128 * high + low: the low digit sits in the tile, the high digit
// here.
struct BlockHeader {
  float scale;         // activation scale times the codebook's step
  float offset;        // what the codebook's offset adds: offset * activation scale * sum(q)
  int32_t correction;  // accumulator's start: undoes the +128 of an unsigned weight table
  int32_t outlier_word;
  int32_t outlier_high;        // the word that multiplies panel word `outlier_word`, 128 times
  int32_t outlier_correction;  // like `correction`, for that product
};

// One code of the 4-bit codebook ~ step * table[code] + offset.
struct IntegerCodebook {
  int8_t table[16];
  float step;
  float offset;
};

// One finished strip of one row: y = g * y + e * (B h) + c + bias over `count` columns from
// `column`.
struct Finish {
  const Update* update;
  const float* latent;  // h = d * (A x), null when rank is 0
  const float* bias;    // null when absent
  int64_t column;
  int64_t count;
};

struct Variant {
  const char* name;
  int columns;
  int rows;

  // Weight rows [columns] of `stride` elements -> panel[depth][Variant::columns] floats.
  // `available` columns exist; the others may hold anything finite.
  void (*load_f32)(const float* weight, size_t stride, int available, int depth, float* panel);
  void (*load_bf16)(const uint16_t* weight, size_t stride, int available, int depth, float* panel);
  // 4-bit codes, two per byte, even k in the high nibble, row stride in bytes, depth % 32 == 0.
  // scales[depth / block_size][Variant::columns], block_size a multiple of 32 that divides depth.
  void (*load_codes)(const uint8_t* codes, size_t stride, int available, int depth,
                     const float* codebook, const float* scales, int block_size, float* panel);
  // x[depth][rows] times panel, into y (assigned when `first`, else accumulated).
  void (*multiply_f32)(int rows, int depth, const float* x, const float* panel, bool first,
                       float* y, size_t y_stride, int available);

  // Codes -> panel[depth / 4][Variant::columns][4] int8 table entries; words of a block in the
  // order of quantize_row.
  void (*load_int8)(const uint8_t* codes, size_t stride, int available, int blocks,
                    const int8_t* table, uint8_t* panel);
  // One activation row, `blocks` blocks of 64, scaled by input_scale when not null. Word w of block
  // b goes to words[(b * 16 + w) * rows], its header to headers[b * rows].
  void (*quantize_row)(const float* x, const float* input_scale, int64_t blocks,
                       const IntegerCodebook& codebook, int rows, uint32_t* words,
                       BlockHeader* headers);
  void (*multiply_int8)(int rows, int blocks, const uint32_t* words, const BlockHeader* headers,
                        const uint8_t* panel, const float* scales, bool first, float* y,
                        size_t y_stride, int available);

  // load_int8 and multiply_int8 in one for a single row, over all blocks of the row; the same bits.
  // Null: the variant gains nothing by it.
  void (*multiply_codes)(const uint8_t* codes, size_t stride, int available, int64_t blocks,
                         const int8_t* table, const uint32_t* words, const BlockHeader* headers,
                         const float* scales, float* y);

  void (*latent)(const Update& update, int64_t first_rank, int64_t ranks, const float* x,
                 int64_t in_features, float* h);
  void (*finish)(const Finish& finish, float* y);
};

// The variant for this machine, or the one the environment variable PARETUNE_ISA names; throws
// OpError when that name is unknown or the processor lacks it.
const Variant& select_variant();

extern const Variant kPortable;
#if defined(PARETUNE_X86)
extern const Variant kAvx2;
extern const Variant kAvx512;
#endif

}  // namespace paretune
