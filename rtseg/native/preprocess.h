// From a picture to the input of a network: resize, BGR to RGB, normalise, planes, in one pass.
//
// preprocess.cpp is compiled once per instruction set, like upsample_argmax.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rtseg {

// Where each output index of one axis reads, in 2048ths: first * weight0 + second * weight1.
struct ResizeTaps {
  const std::int32_t* first;    // source indices; never decrease
  const std::int32_t* second;   // first + 1, or first where weight1 is 0
  const std::int32_t* weights;  // weight0 in the lower 16 bits, weight1 in the upper
};

struct PreprocessJob {
  const std::uint8_t* bgr;  // (src_height, src_width, 3)
  std::ptrdiff_t stride;    // bytes from row to row
  int src_height, src_width;
  ResizeTaps rows, columns;  // unused where nothing is resized
  const float* scale;        // three numbers each, RGB
  const float* shift;
  float* planes;  // (3, height, width)
  int height, width;
};

// Numbers of working memory that a job needs.
constexpr std::size_t preprocess_scratch(int width) { return (std::size_t)width * 10; }

using Preprocess = void (*)(const PreprocessJob&, std::int16_t* scratch);

#define RTSEG_DECLARE_PREPROCESS(isa) \
  namespace isa {                     \
  void preprocess(const PreprocessJob&, std::int16_t* scratch); \
  }
RTSEG_DECLARE_PREPROCESS(baseline)
RTSEG_DECLARE_PREPROCESS(avx2)
RTSEG_DECLARE_PREPROCESS(avx512)
#undef RTSEG_DECLARE_PREPROCESS

}  // namespace rtseg
