// CUDA's names for a host compiler: a block's threads run one after the other, phase by phase.
//
//     g++ -x c++ -std=c++17 -ffp-contract=off -shared -fPIC -include shim.h kernels.cu
//
// Blocks are chosen with `set_block`, the order of the threads with `set_order`: a result that
// depends on it gives away a race between the threads of a phase.
#pragma once
#define RTSEG_HOST_SHIM

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static

using std::min;

struct uint4 {
  unsigned x, y, z, w;
};
struct Index {
  unsigned x, y;
};

static Index blockIdx;
static int step = 1;  // odd: n * step visits every thread of a power of two once

extern "C" void set_block(unsigned x, unsigned y) { blockIdx = {x, y}; }
extern "C" void set_order(int odd) { step = odd; }

namespace rtseg {

constexpr int kHostThreads = 256;

template <class Phase>
void each_thread(Phase phase) {
  for (unsigned n = 0; n < (unsigned)kHostThreads; ++n) {
    phase((int)(n * (unsigned)step % (unsigned)kHostThreads));
  }
}

inline float half_to_float(unsigned short bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return (float)half;
}

inline unsigned short float_to_half(float value) {
  const _Float16 half = (_Float16)value;
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

}  // namespace rtseg

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __double2float_rn(double a) { return (float)a; }
inline int __float2int_rn(float a) { return (int)std::nearbyint(a); }

inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <class T>
T __ldg(const T* at) {
  return *at;
}

template <class T>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at += value;
  return old;
}
