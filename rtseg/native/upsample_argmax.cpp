// Exact argmax of bilinearly upsampled logits: only the cells on class boundaries are evaluated.
//
// The value of class k at an output pixel is, in float32, every operation rounded on its own
// (no fused multiply-add), horizontal first:
//     top = p[y][x] * wx0 + p[y][x+1] * wx1        bottom = the same one row below
//     v_k = top * wy0 + bottom * wy1               where a weight1 is 0: the first operand itself
// and the label is the lowest k with the largest v_k, or the ignore index if any v_k is NaN.
//
// Why leaving classes out is exact. The weights are >= 0 and rounding is monotone, so v_k as
// computed never decreases when a corner of k grows. Take a class m that exceeds class k at all
// four corners by more than d = 2^-19 * M + 2^-120, M being m's largest magnitude there. Then
// v_k <= v(corners of m, less d). In real arithmetic that is below v_m by at least d * (1 - 2^-22);
// each of the two values passes four roundings in sequence, hence is off by less than 2^-21 * M
// (and 2^-146 from underflow): v_k < v_m also as computed.
// Where k comes after m, v_k <= v_m is enough, because a tie goes to the lower index; for that
// monotonicity alone suffices, and no margin is needed. Hence
//   - a cell is filled with m if m is the (lowest-index) argmax at its four corners and beats the
//     classes before it with the margin: classes after it are <= m at every corner;
//   - in other cells a class is left out if one that stays beats it with the margin everywhere.
// Cells with a corner that is NaN, infinite or above 2^120 (the margin argument needs finite sums,
// and inf * 0 is NaN) are evaluated with all classes and a check for NaN.
//
// Nothing here may instantiate an inline function of the standard library: the linker could keep
// the copy compiled for the newest instruction set and crash older processors.

#include "upsample_argmax.h"
#include "logits_row.h"
#include "simd.h"

namespace rtseg {
namespace RTSEG_ISA {
namespace {

constexpr int kBlock = 64;     // output columns evaluated together; a multiple of kLanes
constexpr int kMaxCells = 64;  // cells of one block for which candidates are sought
constexpr float kRelative = 0x1p-19f, kAbsolute = 0x1p-120f;  // the margin
constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

constexpr std::int32_t kFill = 0, kEvaluate = 1, kCheck = 2;  // bits of a cell's flags

struct State {
  const Job& job;
  int row_stride;  // floats from class to class, width and padding
  bool dense;      // fewer output than input pixels: a low-resolution argmax would not pay
  Row row[2];
  std::int32_t* flags;      // per cell of the current pair of rows
  std::uint8_t* fill;       // the output row if no cell needed evaluation
  float* thresholds;        // 8 x (kMaxCells + kLanes): corners of two winners, less the margin
  float* expanded;          // per candidate: kBlock + kTail of `top`, the same of `bottom`
  std::int32_t* candidates; // class indices, ascending
};
constexpr int kThresholdStride = kMaxCells + kLanes;
constexpr int kExpandedStride = kBlock + kTail;

// Lays the arrays of a State out in `base`; with base null only the size is computed.
std::size_t lay_out(State& s, char* base) {
  std::size_t used = 0;
  const auto take = [&](std::size_t bytes) {
    char* p = base == nullptr ? nullptr : base + used;
    used += (bytes + 63) / 64 * 64;
    return (void*)p;
  };
  const Logits& logits = s.job.logits;
  const std::size_t cells = (std::size_t)s.row_stride * 4;
  for (Row& row : s.row) {
    row.index = -1;
    row.values = (float*)take(cells * logits.classes);
    row.best = (float*)take(cells);
    row.lead = (float*)take(cells);
    row.label = (std::int32_t*)take(cells);
    row.unsafe = (std::int32_t*)take(cells);
  }
  s.flags = (std::int32_t*)take(cells);
  s.fill = (std::uint8_t*)take((std::size_t)s.job.width + kTail);
  s.thresholds = (float*)take(sizeof(float) * 8 * kThresholdStride);
  s.expanded = (float*)take(sizeof(float) * 2 * kExpandedStride * logits.classes);
  s.candidates = (std::int32_t*)take(sizeof(std::int32_t) * logits.classes);
  return used;
}

State make_state(const Job& job) {
  State s{job, 0, false, {}, nullptr, nullptr, nullptr, nullptr, nullptr};
  // One column for the right neighbour of the last cell, one vector that loads may run over.
  s.row_stride = round_up(job.logits.width + 1 + kLanes, 2 * kLanes);
  const std::int64_t inputs = (std::int64_t)job.logits.height * job.logits.width;
  s.dense = (std::int64_t)job.height * job.width < inputs;
  return s;
}

const Row& get_row(State& s, int y) {
  Row& row = s.row[y & 1];
  if (row.index != y) {
    copy_values(s.job.logits, y, s.row_stride, row.values);
    if (!s.dense) find_winners(row, s.job.logits.classes, s.row_stride);
    row.index = y;
  }
  return row;
}

void flag_cells(const State& s, const Row& upper, const Row& lower) {
  const int width = s.job.logits.width;
  if (s.dense) {
    for (int j = 0; j < width; ++j) s.flags[j] = kEvaluate | kCheck;
    return;
  }
  for (int j = 0; j < width; j += kLanes) {
    I differs = {}, unsafe = {};
    F lead = load<F>(upper.lead + j), size = F{};
    const I label = load<I>(upper.label + j);
    const Row* const rows[2] = {&upper, &lower};
    for (const Row* row : rows) {
      for (int right = 0; right < 2; ++right) {
        const int x = j + right;
        differs |= load<I>(row->label + x) != label;
        unsafe |= load<I>(row->unsafe + x);
        lead = smaller(lead, load<F>(row->lead + x));
        size = larger(size, absolute(load<F>(row->best + x)));
      }
    }
    const I clear = lead > size * kRelative + kAbsolute;
    store(s.flags + j, ((differs | ~clear | unsafe) & kEvaluate) | (unsafe & kCheck));
  }
}

void fill_cells(const State& s, const Row& upper, int first_row, int end_row) {
  const std::int32_t* start = s.job.columns.start;
  typedef Vector<16>::u8 Bytes;
  for (int j = 0; j < s.job.logits.width; ++j) {
    const Bytes label = Bytes{} + (std::uint8_t)upper.label[j];
    for (int x = start[j]; x < start[j + 1]; x += 16) store(s.fill + x, label);
  }
  for (int y = first_row; y < end_row; ++y) {
    __builtin_memcpy(s.job.labels + (std::size_t)y * s.job.width, s.fill, s.job.width);
  }
}

int all_classes(const State& s) {
  for (int k = 0; k < s.job.logits.classes; ++k) s.candidates[k] = k;
  return s.job.logits.classes;
}

// The classes that may win in cells [first, last]: those that neither of two corner winners beats
// with the margin at all corners of the cell. A winner is never beaten so at its own corner.
int find_candidates(const State& s, const Row& upper, const Row& lower, int first, int last) {
  const int cells = last - first + 1, padded = round_up(cells, kLanes);
  if (cells > kMaxCells) return all_classes(s);
  for (int c = 0; c < cells; ++c) {
    const int j = first + c;
    const int one = upper.label[j];
    int two = lower.label[j + 1];
    if (lower.label[j] != one) two = lower.label[j];
    if (upper.label[j + 1] != one) two = upper.label[j + 1];
    float* threshold = s.thresholds + c;
    const int winners[2] = {one, two};
    for (const int winner : winners) {
      const float* a = upper.values + (std::size_t)winner * s.row_stride + j;
      const float* b = lower.values + (std::size_t)winner * s.row_stride + j;
      const float corners[4] = {a[0], a[1], b[0], b[1]};
      float size = 0.0f;
      for (const float corner : corners) size = larger(size, absolute(corner));
      const float margin = size * kRelative + kAbsolute;
      for (const float corner : corners) {
        *threshold = corner - margin;
        threshold += kThresholdStride;
      }
    }
  }
  for (int c = cells; c < padded; ++c) {  // lanes beyond the last cell keep no class
    for (int t = 0; t < 8; ++t) s.thresholds[t * kThresholdStride + c] = __builtin_inff();
  }
  int count = 0;
  for (int k = 0; k < s.job.logits.classes; ++k) {
    const float* a = upper.values + (std::size_t)k * s.row_stride + first;
    const float* b = lower.values + (std::size_t)k * s.row_stride + first;
    I kept = {};
    for (int c = 0; c < padded; c += kLanes) {
      const F corner[4] = {load<F>(a + c), load<F>(a + c + 1), load<F>(b + c), load<F>(b + c + 1)};
      const float* t = s.thresholds + c;
      I by_one = ~I{}, by_two = ~I{};
      for (int q = 0; q < 4; ++q) {
        by_one &= corner[q] < load<F>(t + q * kThresholdStride);
        by_two &= corner[q] < load<F>(t + (q + 4) * kThresholdStride);
      }
      kept |= ~(by_one | by_two);
    }
    s.candidates[count] = k;
    count += any(kept);
  }
  return count;
}

template <bool kChecked, class V>
RTSEG_INLINE V interpolate(V left, V right, V weight0, V weight1) {
  const V between = left * weight0 + right * weight1;
  if (!kChecked) return between;  // finite, so that 0 * right is 0
  return weight1 == 0.0f ? left : between;
}

// Interpolates the candidates of two rows horizontally, for output columns [first, end): cell by
// cell in vectors of N columns. These may run over the cell: the next one overwrites.
template <bool kChecked, int N>
void expand_cells(const State& s, const Row& upper, const Row& lower, int count, int first,
                  int end) {
  using V = typename Vector<N>::f32;
  const Taps& taps = s.job.columns;
  for (int j = taps.cell[first], x = first; x < end; ++j) {
    const int cell_end = taps.start[j + 1] < end ? taps.start[j + 1] : end;
    for (; x < cell_end; x += N) {
      const V w0 = load<V>(taps.weight0 + x), w1 = load<V>(taps.weight1 + x);
      float* out = s.expanded + (x - first);
      for (int i = 0; i < count; ++i, out += 2 * kExpandedStride) {
        const std::size_t at = (std::size_t)s.candidates[i] * s.row_stride + j;
        const float* a = upper.values + at;
        const float* b = lower.values + at;
        store(out, interpolate<kChecked>(V{} + a[0], V{} + a[1], w0, w1));
        store(out + kExpandedStride, interpolate<kChecked>(V{} + b[0], V{} + b[1], w0, w1));
      }
    }
    x = cell_end;
  }
}

// The same where a vector of columns reads at most a vector of cells: any number of cells at once.
template <bool kChecked>
void expand_columns(const State& s, const Row& upper, const Row& lower, int count, int first,
                    int end) {
  const Taps& taps = s.job.columns;
  for (int x = first; x < end; x += kLanes) {
    const int j = taps.cell[x];
    const I at = load<I>(taps.cell + x) - j;
    const F w0 = load<F>(taps.weight0 + x), w1 = load<F>(taps.weight1 + x);
    float* out = s.expanded + (x - first);
    for (int i = 0; i < count; ++i, out += 2 * kExpandedStride) {
      const std::size_t class_at = (std::size_t)s.candidates[i] * s.row_stride + j;
      const float* a = upper.values + class_at;
      const float* b = lower.values + class_at;
      const F a0 = permute(load<F>(a), at), a1 = permute(load<F>(a + 1), at);
      const F b0 = permute(load<F>(b), at), b1 = permute(load<F>(b + 1), at);
      store(out, interpolate<kChecked>(a0, a1, w0, w1));
      store(out + kExpandedStride, interpolate<kChecked>(b0, b1, w0, w1));
    }
  }
}

// Writes the first `count` bytes of a vector; `room` bytes may be read and written back.
RTSEG_INLINE void store_some(std::uint8_t* out, B bytes, int count, int room) {
  if (count >= kLanes) {
    store(out, bytes);
  } else if (room >= kLanes) {
    B lane = {};
    for (int i = 0; i < kLanes; ++i) lane[i] = (std::uint8_t)i;
    store(out, lane < (std::uint8_t)count ? bytes : load<B>(out));
  } else {
    std::uint8_t all[kLanes];
    store(all, bytes);
    for (int i = 0; i < count; ++i) out[i] = all[i];
  }
}

// Labels of R rows from y on and one vector of columns, `column` counted from `first`.
template <bool kChecked, int R>
RTSEG_INLINE void evaluate_rows(const State& s, int count, int first, int end, int column, int y) {
  const Job& job = s.job;
  const float* in = s.expanded + column;
  F w0[R], w1[R], best[R];
  I label[R], invalid[R];
  for (int r = 0; r < R; ++r) {
    w0[r] = F{} + job.rows.weight0[y + r];
    w1[r] = F{} + job.rows.weight1[y + r];
    label[r] = I{} + s.candidates[0];
    invalid[r] = I{};
  }
  for (int i = 0; i < count; ++i, in += 2 * kExpandedStride) {
    const F top = load<F>(in), bottom = load<F>(in + kExpandedStride);
    const I k = I{} + s.candidates[i];
    for (int r = 0; r < R; ++r) {
      F v = top * w0[r] + bottom * w1[r];
      if (kChecked) {
        v = w1[r] == 0.0f ? top : v;
        invalid[r] |= v != v;
      }
      if (i == 0) {
        best[r] = v;
      } else {
        const I wins = v > best[r];
        best[r] = wins ? v : best[r];
        label[r] = wins ? k : label[r];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    if (kChecked) label[r] = invalid[r] ? I{} + job.ignore_index : label[r];
    const int x = first + column;
    std::uint8_t* out = job.labels + (std::size_t)(y + r) * job.width + x;
    store_some(out, __builtin_convertvector(label[r], B), end - x, job.width - x);
  }
}

template <bool kChecked>
void evaluate(const State& s, const Row& upper, const Row& lower, int count, int first, int end,
              int first_row, int end_row) {
  if (kPermutes && s.job.width >= s.job.logits.width) {
    expand_columns<kChecked>(s, upper, lower, count, first, end);
  } else {
    expand_cells<kChecked, 4>(s, upper, lower, count, first, end);
  }
  for (int column = 0; column < end - first; column += kLanes) {
    int y = first_row;
    for (; y + 4 <= end_row; y += 4) evaluate_rows<kChecked, 4>(s, count, first, end, column, y);
    for (; y + 2 <= end_row; y += 2) evaluate_rows<kChecked, 2>(s, count, first, end, column, y);
    if (y < end_row) evaluate_rows<kChecked, 1>(s, count, first, end, column, y);
  }
}

}  // namespace

std::size_t scratch_bytes(const Job& job) {
  State s = make_state(job);
  return lay_out(s, nullptr);
}

void upsample_argmax(const Job& job, void* scratch) {
  State s = make_state(job);
  lay_out(s, (char*)scratch);
  const Logits& logits = job.logits;
  const std::int32_t* start = job.columns.start;
  for (int i = 0; i < logits.height; ++i) {
    const int first_row = job.rows.start[i], end_row = job.rows.start[i + 1];
    if (first_row == end_row) continue;
    const Row& upper = get_row(s, i);
    const Row& lower = i + 1 < logits.height ? get_row(s, i + 1) : upper;
    flag_cells(s, upper, lower);
    if (!s.dense) fill_cells(s, upper, first_row, end_row);
    for (int j = 0; j < logits.width;) {
      if (s.flags[j] == kFill) {
        ++j;
        continue;
      }
      int run_end = j;
      while (run_end < logits.width && s.flags[run_end] != kFill) ++run_end;
      for (int x = start[j]; x < start[run_end]; x += kBlock) {
        const int end = x + kBlock < start[run_end] ? x + kBlock : start[run_end];
        const int first_cell = job.columns.cell[x], last_cell = job.columns.cell[end - 1];
        bool checked = false;
        for (int c = first_cell; c <= last_cell; ++c) checked |= (s.flags[c] & kCheck) != 0;
        if (checked) {
          evaluate<true>(s, upper, lower, all_classes(s), x, end, first_row, end_row);
        } else {
          const int count = find_candidates(s, upper, lower, first_cell, last_cell);
          evaluate<false>(s, upper, lower, count, x, end, first_row, end_row);
        }
      }
      j = run_end;
    }
  }
}

}  // namespace RTSEG_ISA
}  // namespace rtseg
