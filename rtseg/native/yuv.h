// From a decoder's 4:2:0 to BGR, and from BGR to 4:2:0 for the video encoder (BT.601, limited range).
//
// yuv.cpp is compiled once per instruction set, like upsample_argmax.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rtseg {

struct YuvWeights {
  int blue, green, red;  // of 2^15
};
// ITU-R BT.601, 2.5: luma spans 219 levels, chroma 224. Grey has no chroma: those sums are zero.
constexpr YuvWeights kLuma = {3208, 16519, 8414};
constexpr YuvWeights kChromaU = {14392, -9535, -4857};
constexpr YuvWeights kChromaV = {-2340, -12052, 14392};
constexpr int kLumaOffset = (16 << 15) + (1 << 14);     // black, and half a level to round
constexpr int kChromaOffset = (128 << 17) + (1 << 16);  // the same for sums of four pixels

struct YuvPicture {
  const std::uint8_t *y, *u, *v;  // (height, width), and half of it, rounded up
  std::ptrdiff_t y_stride, u_stride, v_stride;
  int height, width;
  int black, luma, red_v, green_u, green_v, blue_u;  // reference.yuv_coefficients
};

// (height, width, 3) uint8 BGR.
using YuvToBgr = void (*)(const YuvPicture&, std::uint8_t* bgr);

struct YuvJob {
  const std::uint8_t* bgr;  // (height, width, 3), both even
  std::ptrdiff_t stride;    // bytes from row to row, of all four
  int height, width;
  std::uint8_t *luma, *u, *v;  // (height, width), (height / 2, width / 2) twice
  std::ptrdiff_t luma_stride, u_stride, v_stride;
};

using ToYuv420 = void (*)(const YuvJob&);

#define RTSEG_DECLARE_YUV(isa)      \
  namespace isa {                   \
  void to_yuv420(const YuvJob&);    \
  void yuv420_to_bgr(const YuvPicture&, std::uint8_t* bgr); \
  }
RTSEG_DECLARE_YUV(baseline)
RTSEG_DECLARE_YUV(avx2)
RTSEG_DECLARE_YUV(avx512)
#undef RTSEG_DECLARE_YUV

}  // namespace rtseg
