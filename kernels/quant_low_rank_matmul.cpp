// Two parallel phases. First every row is packed (or quantised) into tiles and its A x is taken;
// then strips of output columns are computed for all rows and finished while they are in cache. How
// rows fall into tiles and columns into strips never changes the order in which one output is
// summed.

#include "quant_low_rank_matmul.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace paretune {
namespace {

constexpr int64_t kFastBlocks = 8;       // blocks per panel in fast mode
constexpr int64_t kStripColumns = 128;   // reuses a tile of x while it is in cache
constexpr int64_t kSerialWork = 400000;  // multiply-adds below which waking threads costs more
constexpr int64_t kResidentFloats = 128 * 1024;  // activations that stay in the second-level cache

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    if (count == 0) return;
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<T, Free> data_;
};

struct Tile {
  int64_t row;
  int rows;
};

// Part of A x: ranks [first, first + count) of one row, to `latent + at`.
struct LatentJob {
  int64_t row;
  int64_t first;
  int64_t count;
  int64_t at;
};

std::vector<Tile> split_rows(int64_t rows, int64_t tallest) {
  const int64_t count = (rows + tallest - 1) / tallest;
  std::vector<Tile> tiles(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = rows * i / count;
    tiles[i] = {first, static_cast<int>(rows * (i + 1) / count - first)};
  }
  return tiles;
}

struct Run {
  const Problem& problem;
  const Variant& variant;
  const Weight& weight;
  int64_t k;
  int64_t n;
  bool integers;  // the int8 path; fast without it multiplies the same rounded values in floats
  int64_t strip;
  std::vector<Tile> tiles;
  std::vector<LatentJob> jobs;
  std::vector<int64_t> latent_start;  // per row, into latent
  Buffer<float> packed;
  Buffer<uint32_t> words;
  Buffer<BlockHeader> headers;
  Buffer<float> latent;

  const Update& update(int64_t row) const { return problem.updates[row / problem.rows_per_update]; }
};

int64_t strip_columns(int64_t n, int64_t columns) {
  const int64_t thirty_second = (n + 31) / 32;
  const int64_t wanted = (thirty_second + columns - 1) / columns * columns;
  return std::min(wanted, std::max(kStripColumns, columns));
}

std::vector<LatentJob> latent_jobs(const Problem& problem, std::vector<int64_t>* start,
                                   int64_t* total) {
  // Few rows: a row's ranks are shared out too. Any split gives the same sums.
  const int64_t most = problem.rows < 8 ? 4 : INT64_MAX;
  std::vector<LatentJob> jobs;
  start->resize(problem.rows);
  *total = 0;
  for (int64_t row = 0; row < problem.rows; ++row) {
    const int64_t rank = problem.updates[row / problem.rows_per_update].rank;
    (*start)[row] = *total;
    for (int64_t first = 0; first < rank; first += std::min(most, rank - first)) {
      jobs.push_back({row, first, std::min(most, rank - first), *total + first});
    }
    *total += rank;
  }
  return jobs;
}

// What the int8 path would multiply, as floats: for weights whose blocks straddle rows.
void round_activations(const Run& run, int64_t row, int64_t stride, float* values) {
  const float* x = run.problem.x + row * run.k;
  const float* input_scale = run.update(row).input_scale;
  const IntegerCodebook identity = {{}, 1.0f, 0.0f};
  for (int64_t k = 0; k < run.k; k += kBlock) {
    float block[kBlock] = {};
    const int64_t count = std::min<int64_t>(kBlock, run.k - k);
    for (int64_t i = 0; i < count; ++i) {
      block[i] = input_scale == nullptr ? x[k + i] : x[k + i] * input_scale[k + i];
    }
    uint32_t words[kBlockWords];
    BlockHeader header;
    run.variant.quantize_row(block, nullptr, 1, identity, 1, words, &header);
    int8_t low[kBlock];
    int8_t high[kBlock] = {};
    std::memcpy(low, words, sizeof(low));
    std::memcpy(high + header.outlier_word * 4, &header.outlier_high, 4);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i / 8 * 8 + i % 2 * 4 + i % 8 / 2;
      values[(k + i) * stride] = static_cast<float>(low[at] + 128 * high[at]) * header.scale;
    }
  }
}

void pack_tile(const Run& run, const Tile& tile) {
  const int64_t k = run.k;
  for (int r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.row + r;
    const float* x = run.problem.x + row * k;
    const float* input_scale = run.update(row).input_scale;
    if (run.integers) {
      run.variant.quantize_row(x, input_scale, k / kBlock, run.weight.integer, tile.rows,
                               run.words.get() + tile.row * (k / 4) + r,
                               run.headers.get() + tile.row * (k / kBlock) + r);
      continue;
    }
    float* to = run.packed.get() + tile.row * k + r;
    if (run.problem.precision == Precision::kFast) {
      round_activations(run, row, tile.rows, to);
    } else if (input_scale == nullptr) {
      for (int64_t i = 0; i < k; ++i) to[i * tile.rows] = x[i];
    } else {
      for (int64_t i = 0; i < k; ++i) to[i * tile.rows] = x[i] * input_scale[i];
    }
  }
}

void first_phase(void* user, size_t index) {
  const Run& run = *static_cast<Run*>(user);
  if (index < run.tiles.size()) return pack_tile(run, run.tiles[index]);
  const LatentJob& job = run.jobs[index - run.tiles.size()];
  run.variant.latent(run.update(job.row), job.first, job.count, run.problem.x + job.row * run.k,
                     run.k, run.latent.get() + job.at);
}

void load_panel(const Run& run, int64_t column, int available, int64_t k, int depth, float* panel) {
  const Weight& weight = run.weight;
  const Variant& variant = run.variant;
  const int64_t first = column * run.k + k;
  if (weight.format == Format::kF32) {
    const auto* from = static_cast<const float*>(weight.data) + first;
    variant.load_f32(from, run.k, available, depth, panel);
  } else if (weight.format == Format::kBf16) {
    const auto* from = static_cast<const uint16_t*>(weight.data) + first;
    variant.load_bf16(from, run.k, available, depth, panel);
  } else if (!weight.aligned) {
    load_straddling(weight, column, available, k, depth, variant.columns, panel);
  } else {
    const auto* from = static_cast<const uint8_t*>(weight.data) + first / 2;
    const int64_t blocks = run.k / weight.block_size;
    const float* scales =
        weight.scales.data() + column * blocks + k / weight.block_size * variant.columns;
    variant.load_codes(from, run.k / 2, available, depth, weight.codebook, scales,
                       static_cast<int>(weight.block_size), panel);
  }
}

void exact_panel(const Run& run, int64_t column, int64_t k) {
  alignas(64) float panel[kExactDepth * kMaxColumns];
  const int available = static_cast<int>(std::min<int64_t>(run.variant.columns, run.n - column));
  const int depth = static_cast<int>(std::min<int64_t>(kExactDepth, run.k - k));
  load_panel(run, column, available, k, depth, panel);
  for (const Tile& tile : run.tiles) {
    run.variant.multiply_f32(tile.rows, depth, run.packed.get() + tile.row * run.k + k * tile.rows,
                             panel, k == 0, run.problem.y + tile.row * run.n + column, run.n,
                             available);
  }
}

void fast_panel(const Run& run, int64_t column, int64_t k) {
  alignas(64) uint8_t panel[kFastBlocks * kBlock * kMaxColumns];
  const int columns = run.variant.columns;
  const int available = static_cast<int>(std::min<int64_t>(columns, run.n - column));
  const int64_t row_blocks = run.k / kBlock;
  const int64_t block = k / kBlock;
  const int blocks = static_cast<int>(std::min(kFastBlocks, row_blocks - block));
  run.variant.load_int8(static_cast<const uint8_t*>(run.weight.data) + (column * run.k + k) / 2,
                        run.k / 2, available, blocks, run.weight.integer.table, panel);
  const float* scales = run.weight.scales.data() + column * row_blocks + block * columns;
  for (const Tile& tile : run.tiles) {
    run.variant.multiply_int8(
        tile.rows, blocks, run.words.get() + tile.row * (run.k / 4) + k / 4 * tile.rows,
        run.headers.get() + tile.row * row_blocks + block * tile.rows, panel, scales, k == 0,
        run.problem.y + tile.row * run.n + column, run.n, available);
  }
}

// The columns of one panel for a batch of one row.
void single_row_panel(const Run& run, int64_t column) {
  const Weight& weight = run.weight;
  const int64_t blocks = run.k / kBlock;
  const int available = static_cast<int>(std::min<int64_t>(run.variant.columns, run.n - column));
  run.variant.multiply_codes(static_cast<const uint8_t*>(weight.data) + column * (run.k / 2),
                             run.k / 2, available, blocks, weight.integer.table, run.words.get(),
                             run.headers.get(), weight.scales.data() + column * blocks,
                             run.problem.y + column);
}

void multiply_strip(const Run& run, int64_t begin, int64_t end) {
  const int64_t columns = run.variant.columns;
  if (run.integers && run.problem.rows == 1 && run.variant.multiply_codes != nullptr) {
    for (int64_t column = begin; column < end; column += columns) single_row_panel(run, column);
    return;
  }
  const int64_t depth = run.integers ? kFastBlocks * kBlock : kExactDepth;
  // While the activations fit in cache, walk each weight row to its end; otherwise keep one slice
  // of them there for all panels of the strip.
  const bool resident = run.problem.rows * run.k <= kResidentFloats * (run.integers ? 4 : 1);
  const int64_t group = resident ? columns : run.strip;
  for (int64_t start = begin; start < end; start += group) {
    for (int64_t k = 0; k < run.k; k += depth) {
      for (int64_t column = start; column < std::min(start + group, end); column += columns) {
        run.integers ? fast_panel(run, column, k) : exact_panel(run, column, k);
      }
    }
  }
}

void second_phase(void* user, size_t index) {
  const Run& run = *static_cast<Run*>(user);
  const int64_t begin = static_cast<int64_t>(index) * run.strip;
  const int64_t end = std::min(begin + run.strip, run.n);
  multiply_strip(run, begin, end);
  for (int64_t row = 0; row < run.problem.rows; ++row) {
    const Update& update = run.update(row);
    const float* latent = update.rank == 0 ? nullptr : run.latent.get() + run.latent_start[row];
    const Finish finish = {&update, latent, run.problem.bias, begin, end - begin};
    run.variant.finish(finish, run.problem.y + row * run.n + begin);
  }
}

void run_serially(void*, void (*task)(void*, size_t), size_t total, void* user) {
  for (size_t i = 0; i < total; ++i) task(user, i);
}

}  // namespace

void quant_low_rank_matmul(const Problem& problem, const Pool& pool) {
  if (problem.rows == 0) return;
  const Weight& weight = *problem.weight;
  const Variant& variant = *problem.variant;
  const int64_t elements = problem.rows * weight.in_features;
  const bool integers = problem.precision == Precision::kFast && weight.aligned;
  std::vector<int64_t> latent_start;
  int64_t latent_count = 0;
  std::vector<LatentJob> jobs = latent_jobs(problem, &latent_start, &latent_count);
  Run run{problem,
          variant,
          weight,
          weight.in_features,
          weight.out_features,
          integers,
          strip_columns(weight.out_features, variant.columns),
          split_rows(problem.rows, variant.rows),
          std::move(jobs),
          std::move(latent_start),
          Buffer<float>(integers ? 0 : elements),
          Buffer<uint32_t>(integers ? elements / 4 : 0),
          Buffer<BlockHeader>(integers ? elements / kBlock : 0),
          Buffer<float>(latent_count)};
  const auto launch = [&](void (*task)(void*, size_t), size_t total, int64_t work) {
    const Pool inline_pool = {nullptr, run_serially};
    const Pool& chosen = work < kSerialWork ? inline_pool : pool;
    chosen.run(chosen.host, task, total, &run);
  };
  // Packing a value costs about as much as four multiply-adds.
  const int64_t first_work = 4 * elements + latent_count * weight.in_features;
  launch(first_phase, run.tiles.size() + run.jobs.size(), first_work);
  const int64_t strips = (run.n + run.strip - 1) / run.strip;
  launch(second_phase, static_cast<size_t>(strips), elements * weight.out_features);
}

}  // namespace paretune
