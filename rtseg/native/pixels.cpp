// See pixels.h. Plain loops: the compiler makes them as wide as the instruction set.

#include "pixels.h"

#ifndef RTSEG_ISA
#define RTSEG_ISA baseline
#endif

namespace rtseg {
namespace RTSEG_ISA {

void to_planes(const std::uint8_t* bgr, std::ptrdiff_t stride, int height, int width,
               const float* scale, const float* shift, float* planes) {
  const std::size_t plane = (std::size_t)height * width;
  const float r1 = scale[0], g1 = scale[1], b1 = scale[2];
  const float r0 = shift[0], g0 = shift[1], b0 = shift[2];
  for (int y = 0; y < height; ++y) {
    const std::uint8_t* __restrict__ in = bgr + y * stride;
    float* __restrict__ red = planes + (std::size_t)y * width;
    float* __restrict__ green = red + plane;
    float* __restrict__ blue = green + plane;
    for (int x = 0; x < width; ++x) {
      red[x] = (float)in[3 * x + 2] * r1 + r0;
      green[x] = (float)in[3 * x + 1] * g1 + g0;
      blue[x] = (float)in[3 * x] * b1 + b0;
    }
  }
}

// A histogram waits for its own last increment wherever neighbours are alike, as labels are nearly
// everywhere: so runs are measured, eight labels at a time, and added once.
void count_labels(const std::uint8_t* labels, std::size_t n, std::int64_t* counts) {
  std::size_t i = 0;
  while (i + 8 <= n) {
    const std::uint64_t run = 0x0101010101010101u * labels[i];
    const std::size_t start = i;
    std::uint64_t word;
    for (; i + 8 <= n; i += 8) {
      __builtin_memcpy(&word, labels + i, 8);
      if (word != run) break;
    }
    counts[run & 255] += (std::int64_t)(i - start);
    if (i + 8 <= n && i == start) {  // a border within the word
      for (int k = 0; k < 8; ++k) ++counts[labels[i + k]];
      i += 8;
    }
  }
  for (; i < n; ++i) ++counts[labels[i]];
}

}  // namespace RTSEG_ISA
}  // namespace rtseg
