// Upsample logits bilinearly and take the argmax, without the upsampled tensor.
//
// upsample_argmax.cpp is compiled once per instruction set, each time into its own namespace;
// bindings.cpp picks one when the module is loaded.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rtseg {

// (classes, height, width) of float32, or of IEEE half precision as raw bits. Strides in elements.
struct Logits {
  const void* data;
  bool half;
  int classes, height, width;
  std::ptrdiff_t stride_class, stride_row, stride_column;
};

// Where each output index of one axis reads: value = in[cell] * weight0 + in[cell + 1] * weight1,
// or in[cell] alone where weight1 is zero. `cell` never decreases.
struct Taps {
  const std::int32_t* cell;    // one per output index, kTail more readable
  const float* weight0;        // one per output index, kTail more readable
  const float* weight1;        // one per output index, kTail more readable
  const std::int32_t* start;   // input size + 1: the first output index of each cell
};
constexpr int kTail = 16;

// One call: logits to labels (height, width), C-contiguous.
struct Job {
  Logits logits;
  Taps rows, columns;
  int height, width;
  std::uint8_t ignore_index;
  std::uint8_t* labels;
};

// Bytes of working memory, zeroed and aligned to 64, that a job of this size needs.
using ScratchBytes = std::size_t (*)(const Job&);
using Kernel = void (*)(const Job&, void* scratch);

#define RTSEG_DECLARE_KERNEL(isa)              \
  namespace isa {                              \
  std::size_t scratch_bytes(const Job& job);   \
  void upsample_argmax(const Job&, void* scratch); \
  }
RTSEG_DECLARE_KERNEL(baseline)
RTSEG_DECLARE_KERNEL(avx2)
RTSEG_DECLARE_KERNEL(avx512)
#undef RTSEG_DECLARE_KERNEL

}  // namespace rtseg
