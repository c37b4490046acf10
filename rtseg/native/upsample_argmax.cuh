// The device code of upsample_argmax: exact labels of bilinearly upsampled logits.
//
// A block makes a tile of labels. Where the logits are upsampled at least twofold along both axes it
// first takes the argmax at low resolution, at the corners of the cells that the tile touches, fills
// the cells with one winner and evaluates the others. upsample_argmax.cpp proves why that is exact,
// and gives the margin.
#pragma once

#include "kernels.cuh"

namespace rtseg {

constexpr int kTileWidth = 128, kTileHeight = 16;
// A cell is at least two pixels wide, so a tile touches at most these.
constexpr int kCellColumns = kTileWidth / 2 + 1, kCellRows = kTileHeight / 2 + 1;
constexpr int kCorners = (kCellColumns + 1) * (kCellRows + 1);
constexpr float kRelative = 0x1p-19f, kAbsolute = 0x1p-120f, kLarge = 0x1p120f;
constexpr unsigned kLabel = 255, kEvaluate = 256, kCheck = 512;  // parts of a corner or cell

template <class Element>
struct Logits {
  const Element* data;  // (classes, height, width), contiguous
  int classes, height, width;
  __device__ __forceinline__ long long plane() const { return (long long)height * width; }
  __device__ __forceinline__ const Element* at(int y, int x) const {
    return data + (long long)y * width + x;
  }
};

// value = in[cell] * weight0 + in[cell + 1] * weight1, or in[cell] alone where weight1 is zero.
struct Tap {
  int cell;
  float weight0, weight1;
};

// reference.taps. A float32 quotient of integers below 2^24 is what float64 would be rounded to.
__device__ __forceinline__ Tap upsample_tap(int i, int inputs, int outputs, bool align_corners) {
  unsigned numerator, denominator;
  if (align_corners) {
    numerator = (unsigned)i * (unsigned)(inputs - 1);
    denominator = outputs > 1 ? (unsigned)(outputs - 1) : 1u;
  } else {
    const unsigned twice = (unsigned)(2 * i + 1) * (unsigned)inputs;
    numerator = twice > (unsigned)outputs ? twice - (unsigned)outputs : 0u;
    denominator = 2u * (unsigned)outputs;
  }
  const unsigned cell = numerator / denominator;
  if (cell + 1 >= (unsigned)inputs) return {inputs - 1, 1.0f, 0.0f};
  const float weight1 = __fdiv_rn((float)(numerator - cell * denominator), (float)denominator);
  return {(int)cell, __fsub_rn(1.0f, weight1), weight1};
}

struct UpsampleShared {
  Tap columns[kTileWidth], rows[kTileHeight];
  int row_start[kCellRows + 1];         // first row of the tile in each row of cells
  float best[kCorners], lead[kCorners]; // the largest logit, and by how much it beats those before
  unsigned short corners[kCorners];     // its class, and kCheck if a logit is not of usable size
  unsigned short cells[kCellColumns * kCellRows];
  unsigned short items[kTileWidth * kCellRows];  // one column of pixels in one row of cells
  int item_count;
  unsigned counts[256];
  alignas(16) unsigned char labels[kTileHeight][kTileWidth];
};

template <class Element>
__device__ __forceinline__ void find_winner(UpsampleShared& shared, int corner,
                                            const Logits<Element>& logits, int y, int x) {
  const Element* at = logits.at(y, x);
  const long long plane = logits.plane();
  float best = load(at), before = -__int_as_float(0x7f800000);
  unsigned label = 0;
  bool usable = fabsf(best) <= kLarge;
#pragma unroll 8
  for (int k = 1; k < logits.classes; ++k) {
    const float value = load(at + k * plane);
    usable &= fabsf(value) <= kLarge;
    if (value > best) {
      before = best;
      best = value;
      label = (unsigned)k;
    }
  }
  shared.best[corner] = best;
  shared.lead[corner] = __fsub_rn(best, before);
  shared.corners[corner] = (unsigned short)(usable ? label : label | kCheck);
}

__device__ __forceinline__ unsigned short classify(const UpsampleShared& shared, int corner,
                                                   int corner_columns) {
  const int others[3] = {corner + 1, corner + corner_columns, corner + corner_columns + 1};
  const unsigned label = shared.corners[corner] & kLabel;
  unsigned check = shared.corners[corner] & kCheck;
  float lead = shared.lead[corner], size = fabsf(shared.best[corner]);
  bool same = true;
  for (const int other : others) {
    same &= (shared.corners[other] & kLabel) == label;
    check |= shared.corners[other] & kCheck;
    lead = fminf(lead, shared.lead[other]);
    size = fmaxf(size, fabsf(shared.best[other]));
  }
  const bool clear = lead > __fadd_rn(__fmul_rn(size, kRelative), kAbsolute);
  return (unsigned short)(label | check | (check || !same || !clear ? kEvaluate : 0));
}

// kChecked: logits may be infinite or NaN; else 0 * right is 0.
template <bool kChecked>
__device__ __forceinline__ float interpolate(float left, float right, const Tap& tap) {
  const float between = __fadd_rn(__fmul_rn(left, tap.weight0), __fmul_rn(right, tap.weight1));
  return kChecked && tap.weight1 == 0.0f ? left : between;
}

// Labels of up to R pixels, one below the other in one cell, from all classes or, unchecked, from
// those that the winner of the cell's first corner does not beat everywhere.
template <bool kChecked, int R, class Element>
__device__ __forceinline__ void evaluate(const Logits<Element>& logits, const Tap& column,
                                         const Tap* rows, int count, unsigned winner,
                                         int ignore_index, unsigned char* labels, int pitch) {
  const long long plane = logits.plane();
  const Element* at = logits.at(rows[0].cell, column.cell);
  const int right = column.cell + 1 < logits.width ? 1 : 0;
  const int below = rows[0].cell + 1 < logits.height ? logits.width : 0;
  float floor_a = 0, floor_b = 0, floor_c = 0, floor_d = 0;
  if (!kChecked) {
    const Element* of = at + winner * plane;
    const float a = load(of), b = load(of + right);
    const float c = load(of + below), d = load(of + below + right);
    const float size = fmaxf(fmaxf(fabsf(a), fabsf(b)), fmaxf(fabsf(c), fabsf(d)));
    const float margin = __fadd_rn(__fmul_rn(size, kRelative), kAbsolute);
    floor_a = __fsub_rn(a, margin);
    floor_b = __fsub_rn(b, margin);
    floor_c = __fsub_rn(c, margin);
    floor_d = __fsub_rn(d, margin);
  }
  Tap row[R];
  float best[R];
  int label[R];
  bool invalid[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    row[r] = rows[r < count ? r : count - 1];
    best[r] = -__int_as_float(0x7f800000);
    label[r] = 0;
    invalid[r] = false;
  }
#pragma unroll 2
  for (int k = 0; k < logits.classes; ++k, at += plane) {
    const float a = load(at), b = load(at + right);
    const float c = load(at + below), d = load(at + below + right);
    if (!kChecked && a < floor_a && b < floor_b && c < floor_c && d < floor_d) continue;
    const float top = interpolate<kChecked>(a, b, column);
    const float bottom = interpolate<kChecked>(c, d, column);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float value = interpolate<kChecked>(top, bottom, row[r]);
      if (kChecked) invalid[r] |= value != value;
      if (value > best[r]) {
        best[r] = value;
        label[r] = k;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r < count) labels[r * pitch] = (unsigned char)(invalid[r] ? ignore_index : label[r]);
  }
}

// Counts runs, not pixels: neighbours mostly share their label.
__device__ __forceinline__ void tally(unsigned* counts, const unsigned char* labels, int count) {
  unsigned run = 1;
  for (int i = 1; i < count; ++i, ++run) {
    if (labels[i] == labels[i - 1]) continue;
    atomicAdd(counts + labels[i - 1], run);
    run = 0;
  }
  atomicAdd(counts + labels[count - 1], run);
}

// Sixteen labels to global memory, in the widest stores that the address allows.
__device__ __forceinline__ void store_labels(unsigned char* out, const unsigned char* labels,
                                             int count) {
  if (count == 16 && is_aligned(out, 16)) {
    *(uint4*)out = *(const uint4*)labels;
    return;
  }
  int i = 0;
  if (is_aligned(out, 4)) {
    for (; i + 4 <= count; i += 4) *(unsigned*)(out + i) = *(const unsigned*)(labels + i);
  }
  for (; i < count; ++i) out[i] = labels[i];
}

template <class Element>
__device__ __forceinline__ void upsample_argmax(UpsampleShared& shared,
                                                const Logits<Element>& logits,
                                                unsigned char* labels, int out_height,
                                                int out_width, bool align_corners,
                                                int ignore_index, unsigned* counts) {
  const int x0 = (int)blockIdx.x * kTileWidth, y0 = (int)blockIdx.y * kTileHeight;
  const int width = min(kTileWidth, out_width - x0), height = min(kTileHeight, out_height - y0);
  const bool by_cells = 2 * logits.width <= out_width && 2 * logits.height <= out_height;
  each_thread([&](int thread) {
    const int row = thread - kTileWidth;
    if (row < 0 && thread < width) {
      shared.columns[thread] = upsample_tap(x0 + thread, logits.width, out_width, align_corners);
    }
    if (row >= 0 && row < height) {
      shared.rows[row] = upsample_tap(y0 + row, logits.height, out_height, align_corners);
    }
    shared.counts[thread] = 0;
    if (thread == 0) shared.item_count = 0;
  });
  if (by_cells) {
    const int first_x = shared.columns[0].cell, first_y = shared.rows[0].cell;
    const int columns = shared.columns[width - 1].cell - first_x + 1;
    const int rows = shared.rows[height - 1].cell - first_y + 1;
    each_thread([&](int thread) {
      for (int n = thread; n < (columns + 1) * (rows + 1); n += kThreads) {
        const int i = n / (columns + 1), j = n % (columns + 1);
        find_winner(shared, n, logits, min(first_y + i, logits.height - 1),
                    min(first_x + j, logits.width - 1));
      }
      if (thread < height) {
        const int cell = shared.rows[thread].cell - first_y;
        if (thread == 0 || shared.rows[thread - 1].cell - first_y != cell) {
          shared.row_start[cell] = thread;
        }
      }
      if (thread == 0) shared.row_start[rows] = height;
    });
    each_thread([&](int thread) {
      for (int n = thread; n < columns * rows; n += kThreads) {
        shared.cells[n] = classify(shared, n / columns * (columns + 1) + n % columns, columns + 1);
      }
    });
    each_thread([&](int thread) {
      for (int n = thread; n < rows * kTileWidth; n += kThreads) {
        const int i = n / kTileWidth, x = n % kTileWidth;
        if (x >= width) continue;
        const unsigned cell = shared.cells[i * columns + shared.columns[x].cell - first_x];
        if (cell & kEvaluate) {
          shared.items[atomicAdd(&shared.item_count, 1)] = (unsigned short)n;
        } else {
          for (int y = shared.row_start[i]; y < shared.row_start[i + 1]; ++y) {
            shared.labels[y][x] = (unsigned char)(cell & kLabel);
          }
        }
      }
    });
    each_thread([&](int thread) {
      for (int n = thread; n < shared.item_count; n += kThreads) {
        const int i = shared.items[n] / kTileWidth, x = shared.items[n] % kTileWidth;
        const Tap column = shared.columns[x];
        const unsigned cell = shared.cells[i * columns + column.cell - first_x];
        const int end = shared.row_start[i + 1];
        for (int y = shared.row_start[i]; y < end; y += 4) {
          unsigned char* out = &shared.labels[y][x];
          const Tap* row = shared.rows + y;
          const unsigned winner = cell & kLabel;
          if (cell & kCheck) {
            evaluate<true, 4>(logits, column, row, end - y, winner, ignore_index, out, kTileWidth);
          } else if (end - y <= 2) {
            evaluate<false, 2>(logits, column, row, end - y, winner, ignore_index, out, kTileWidth);
          } else {
            evaluate<false, 4>(logits, column, row, end - y, winner, ignore_index, out, kTileWidth);
          }
        }
      }
    });
  } else {
    each_thread([&](int thread) {
      for (int n = thread; n < height * kTileWidth; n += kThreads) {
        const int y = n / kTileWidth, x = n % kTileWidth;
        if (x >= width) continue;
        evaluate<true, 1>(logits, shared.columns[x], shared.rows + y, 1, 0, ignore_index,
                          &shared.labels[y][x], kTileWidth);
      }
    });
  }
  each_thread([&](int thread) {
    for (int n = thread; n < height * (kTileWidth / 16); n += kThreads) {
      const int y = n / (kTileWidth / 16), x = n % (kTileWidth / 16) * 16;
      const int count = min(16, width - x);
      if (count <= 0) continue;
      store_labels(labels + (long long)(y0 + y) * out_width + x0 + x, &shared.labels[y][x], count);
      if (counts) tally(shared.counts, &shared.labels[y][x], count);
    }
  });
  if (counts) {
    each_thread([&](int thread) {
      if (shared.counts[thread]) atomicAdd(counts + thread, shared.counts[thread]);
    });
  }
}

}  // namespace rtseg
