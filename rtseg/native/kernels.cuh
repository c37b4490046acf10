// The device code of kernels.cu: what all kernels share, preprocess and blend.
//
// A kernel is a sequence of phases. `each_thread` runs one phase on every thread of the block and
// then waits for all of them; what passes from phase to phase lies in shared memory. So the same
// source runs on a host, one thread after the other, and is tested there against reference.py
// (tests/cuda_host/shim.h stands in for CUDA's own names).
//
// Results must not depend on the GPU: every floating-point operation that is compared bit by bit
// names its rounding (__fmul_rn and the like), which also forbids the fused multiply-add.
#pragma once

namespace rtseg {

constexpr int kThreads = 256;  // of every block of every kernel

#ifndef RTSEG_HOST_SHIM
template <class Phase>
__device__ __forceinline__ void each_thread(Phase phase) {
  phase((int)threadIdx.x);
  __syncthreads();
}

// Half precision as raw bits: exact one way, rounded to nearest even the other.
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#endif

__device__ __forceinline__ float load(const float* at) { return __ldg(at); }
__device__ __forceinline__ float load(const unsigned short* at) { return half_to_float(__ldg(at)); }
__device__ __forceinline__ void store(float* at, float value) { *at = value; }
__device__ __forceinline__ void store(unsigned short* at, float value) {
  *at = float_to_half(value);
}
__device__ __forceinline__ int clamp(int value, int low, int high) {
  return value < low ? low : value > high ? high : value;
}
__device__ __forceinline__ bool is_aligned(const void* pointer, int bytes) {
  return ((unsigned long long)pointer & (unsigned)(bytes - 1)) == 0;
}

// --- preprocess -----------------------------------------------------------------------------------
// OpenCV's INTER_LINEAR on uint8, to the bit: weights of 11 bits, rows first combined in integers
// along x, then along y with four bits dropped. (Halving, which OpenCV does by the mean of four, comes
// out alike.) Then value * scale + shift, each rounded to float32, as in preprocess.cpp.

constexpr int kImageTileWidth = 64, kImageTileHeight = 16;

struct ResizeTap {
  int first, second;     // source indices
  int weight0, weight1;  // of 2048
};

__device__ __forceinline__ ResizeTap resize_tap(int i, int inputs, double scale, bool is_column) {
  const double position = __dadd_rn(__dmul_rn(i + 0.5, scale), -0.5);
  float rest = __double2float_rn(position);
  int at = (int)floorf(rest);
  rest = __fsub_rn(rest, (float)at);
  // OpenCV drops the weight beyond the image along x and reads its border twice along y.
  if (is_column && (at < 0 || at >= inputs - 1)) rest = 0.0f;
  ResizeTap tap;
  tap.first = clamp(at, 0, inputs - 1);
  tap.second = clamp(at + 1, 0, inputs - 1);
  tap.weight0 = __float2int_rn(__fmul_rn(__fsub_rn(1.0f, rest), 2048.0f));
  tap.weight1 = __float2int_rn(__fmul_rn(rest, 2048.0f));
  return tap;
}

__device__ __forceinline__ int resized(int a, int b, int c, int d, const ResizeTap& column,
                                       const ResizeTap& row) {
  const int upper = a * column.weight0 + b * column.weight1;
  const int lower = c * column.weight0 + d * column.weight1;
  return ((row.weight0 * (upper >> 4) >> 16) + (row.weight1 * (lower >> 4) >> 16) + 2) >> 2;
}

struct Rgb {
  int r, g, b;
};

struct BgrImage {
  const unsigned char* data;
  int pitch;  // bytes from row to row
  __device__ __forceinline__ Rgb at(int y, int x) const {
    const unsigned char* pixel = data + (long long)y * pitch + 3 * x;
    return {__ldg(pixel + 2), __ldg(pixel + 1), __ldg(pixel)};
  }
};

// A luma plane and, at half its size, interleaved chroma; one pitch for both. The coefficients are
// those of cv2.cvtColor, of 2^20.
struct Nv12Image {
  const unsigned char *y, *uv;
  int pitch, black, luma, red_v, green_u, green_v, blue_u;
  __device__ __forceinline__ Rgb at(int row, int x) const {
    const unsigned char* chroma = uv + (long long)(row >> 1) * pitch + (x & ~1);
    const int u = __ldg(chroma) - 128, v = __ldg(chroma + 1) - 128;
    const int above_black = __ldg(y + (long long)row * pitch + x) - black;
    const int grey = (above_black < 0 ? 0 : above_black) * luma + (1 << 19);
    return {clamp((grey + red_v * v) >> 20, 0, 255),
            clamp((grey + green_u * u + green_v * v) >> 20, 0, 255),
            clamp((grey + blue_u * u) >> 20, 0, 255)};
  }
};

struct Normalisation {
  float scale_r, scale_g, scale_b, shift_r, shift_g, shift_b;
};

struct PreprocessShared {
  ResizeTap columns[kImageTileWidth], rows[kImageTileHeight];
};

template <class Image, class Element>
__device__ __forceinline__ void preprocess(PreprocessShared& shared, const Image& image,
                                           int src_height, int src_width, Element* dst, int height,
                                           int width, double scale_y, double scale_x,
                                           const Normalisation& to) {
  const int x0 = (int)blockIdx.x * kImageTileWidth, y0 = (int)blockIdx.y * kImageTileHeight;
  each_thread([&](int thread) {
    const int row = thread - kImageTileWidth;
    if (row < 0) shared.columns[thread] = resize_tap(x0 + thread, src_width, scale_x, true);
    else if (row < kImageTileHeight)
      shared.rows[row] = resize_tap(y0 + row, src_height, scale_y, false);
  });
  each_thread([&](int thread) {
    const int column = thread % kImageTileWidth, x = x0 + column;
    if (x >= width) return;
    const ResizeTap tap_x = shared.columns[column];
    const long long plane = (long long)height * width;
    for (int r = thread / kImageTileWidth; r < kImageTileHeight; r += kThreads / kImageTileWidth) {
      const int y = y0 + r;
      if (y >= height) break;
      const ResizeTap tap_y = shared.rows[r];
      const Rgb a = image.at(tap_y.first, tap_x.first), b = image.at(tap_y.first, tap_x.second);
      const Rgb c = image.at(tap_y.second, tap_x.first), d = image.at(tap_y.second, tap_x.second);
      const int red = resized(a.r, b.r, c.r, d.r, tap_x, tap_y);
      const int green = resized(a.g, b.g, c.g, d.g, tap_x, tap_y);
      const int blue = resized(a.b, b.b, c.b, d.b, tap_x, tap_y);
      Element* out = dst + (long long)y * width + x;
      store(out, __fadd_rn(__fmul_rn((float)red, to.scale_r), to.shift_r));
      store(out + plane, __fadd_rn(__fmul_rn((float)green, to.scale_g), to.shift_g));
      store(out + 2 * plane, __fadd_rn(__fmul_rn((float)blue, to.scale_b), to.shift_b));
    }
  });
}

// --- blend ----------------------------------------------------------------------------------------

constexpr int kBlendPixels = 4 * 4 * kThreads;  // of one block: four times four per thread

struct BlendShared {
  float colours[256 * 3];
};

// reference.blend, to the bit; `rest` is 1 - opacity. `out` may be `bgr`.
__device__ __forceinline__ void blend(BlendShared& shared, const unsigned char* bgr,
                                      const unsigned char* labels, const unsigned char* palette,
                                      unsigned char* out, int pixels, float opacity, float rest) {
  each_thread([&](int thread) {
    for (int n = thread; n < 256 * 3; n += kThreads) {
      shared.colours[n] = __fmul_rn((float)palette[n], opacity);
    }
  });
  const auto mix = [&](unsigned value, unsigned label, int channel) {
    const float sum =
        __fadd_rn(__fmul_rn((float)value, rest), shared.colours[3 * label + channel]);
    return (unsigned)clamp(__float2int_rn(sum), 0, 255);
  };
  const bool in_words = is_aligned(bgr, 4) && is_aligned(labels, 4) && is_aligned(out, 4);
  each_thread([&](int thread) {
    for (int turn = 0; turn < kBlendPixels / (4 * kThreads); ++turn) {
      const long long first =
          (long long)blockIdx.x * kBlendPixels + (turn * kThreads + thread) * 4;
      if (in_words && first + 4 <= pixels) {
        const unsigned four = *(const unsigned*)(labels + first);
        const unsigned* in = (const unsigned*)(bgr + 3 * first);
        const unsigned from[3] = {in[0], in[1], in[2]};
        unsigned to[3] = {0, 0, 0};
#pragma unroll
        for (int i = 0; i < 12; ++i) {
          const int shift = i % 4 * 8;
          to[i / 4] |= mix(from[i / 4] >> shift & 255u, four >> i / 3 * 8 & 255u, i % 3) << shift;
        }
        unsigned* words = (unsigned*)(out + 3 * first);
        words[0] = to[0];
        words[1] = to[1];
        words[2] = to[2];
      } else {
        for (long long p = first; p < first + 4 && p < pixels; ++p) {
          for (int c = 0; c < 3; ++c) {
            out[3 * p + c] = (unsigned char)mix(bgr[3 * p + c], labels[p], c);
          }
        }
      }
    }
  });
}

}  // namespace rtseg
