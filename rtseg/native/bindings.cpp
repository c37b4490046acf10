// rtseg.native._cpu: the compiled kernels, and the choice of an instruction set.
//
// Arguments are checked in rtseg/native/__init__.py; here only what would crash is checked again.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pixels.h"
#include "preprocess.h"
#include "upsample_argmax.h"
#include "yuv.h"

namespace nb = nanobind;

namespace {

struct Isa {
  const char* name;
  rtseg::ScratchBytes scratch_bytes;
  rtseg::Kernel upsample_argmax;
  rtseg::Preprocess preprocess;
  rtseg::Blend blend;
  rtseg::CountLabels count_labels;
  rtseg::ToYuv420 to_yuv420;
  rtseg::YuvToBgr yuv420_to_bgr;
};
#define RTSEG_ISA_ENTRY(isa)                                                                  \
  {#isa, rtseg::isa::scratch_bytes, rtseg::isa::upsample_argmax, rtseg::isa::preprocess,       \
   rtseg::isa::blend, rtseg::isa::count_labels, rtseg::isa::to_yuv420,                \
   rtseg::isa::yuv420_to_bgr}

// Those this processor has, best first.
std::vector<Isa> available() {
  std::vector<Isa> found;
#ifdef RTSEG_X86_CLONES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(RTSEG_ISA_ENTRY(avx512));
  }
  // Every processor with AVX2 has F16C, which the AVX2 build uses as well.
  if (__builtin_cpu_supports("avx2")) found.push_back(RTSEG_ISA_ENTRY(avx2));
#endif
  found.push_back(RTSEG_ISA_ENTRY(baseline));
  return found;
}

const std::vector<Isa>& isas() {
  static const std::vector<Isa> found = available();
  return found;
}

const Isa& find_isa(const std::string& name) {
  if (name.empty()) return isas().front();
  for (const Isa& isa : isas()) {
    if (name == isa.name) return isa;
  }
  throw std::invalid_argument("isa: this processor or build has no \"" + name + "\"");
}

// Bilinear sampling positions of one axis, as in reference.py: integers until the last division,
// so that they are the same everywhere.
struct Axis {
  std::vector<std::int32_t> cell, start;
  std::vector<float> weight0, weight1;

  Axis(std::int64_t inputs, std::int64_t outputs, bool align_corners)
      : cell(outputs + rtseg::kTail),
        start(inputs + 1),
        weight0(outputs + rtseg::kTail),
        weight1(outputs + rtseg::kTail) {
    constexpr std::int64_t zero = 0, one = 1;
    const std::int64_t denominator = align_corners ? std::max(outputs - 1, one) : 2 * outputs;
    std::int64_t next = 0;
    for (std::int64_t i = 0; i < outputs; ++i) {
      const std::int64_t numerator =
          align_corners ? i * (inputs - 1) : std::max((2 * i + 1) * inputs - outputs, zero);
      std::int64_t index = numerator / denominator, rest = numerator % denominator;
      if (index >= inputs - 1) index = inputs - 1, rest = 0;
      cell[i] = static_cast<std::int32_t>(index);
      weight1[i] = static_cast<float>(static_cast<double>(rest) / static_cast<double>(denominator));
      weight0[i] = 1.0f - weight1[i];
      while (next <= index) start[next++] = static_cast<std::int32_t>(i);
    }
    while (next <= inputs) start[next++] = static_cast<std::int32_t>(outputs);
  }

  rtseg::Taps taps() const { return {cell.data(), weight0.data(), weight1.data(), start.data()}; }
};

using Input = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using Output = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void upsample_argmax(const Input& logits, const Output& labels, bool align_corners,
                     int ignore_index, const std::string& isa_name) {
  constexpr auto kFloat = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float);
  const nb::dlpack::dtype dtype = logits.dtype();
  if (dtype.code != kFloat || (dtype.bits != 32 && dtype.bits != 16) || dtype.lanes != 1) {
    throw nb::type_error("logits: expected float32 or float16");
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (logits.shape(axis) == 0) throw std::invalid_argument("logits: expected no empty axis");
  }
  if (logits.shape(0) > 255) throw std::invalid_argument("logits: expected at most 255 classes");
  if (labels.size() == 0) throw std::invalid_argument("labels: expected no empty axis");
  const Isa& isa = find_isa(isa_name);
  const nb::gil_scoped_release release;

  const auto size = [](std::size_t n) { return static_cast<int>(n); };
  const Axis rows(size(logits.shape(1)), size(labels.shape(0)), align_corners);
  const Axis columns(size(logits.shape(2)), size(labels.shape(1)), align_corners);
  const rtseg::Job job{
      {logits.data(), dtype.bits == 16, size(logits.shape(0)), size(logits.shape(1)),
       size(logits.shape(2)), logits.stride(0), logits.stride(1), logits.stride(2)},
      rows.taps(),
      columns.taps(),
      size(labels.shape(0)),
      size(labels.shape(1)),
      static_cast<std::uint8_t>(ignore_index),
      labels.data()};
  std::size_t space = isa.scratch_bytes(job) + 64;
  const std::unique_ptr<char[]> memory(new char[space]());
  void* scratch = memory.get();
  std::align(64, space - 64, scratch, space);
  isa.upsample_argmax(job, scratch);
}

using Image = nb::ndarray<const std::uint8_t, nb::shape<-1, -1, 3>, nb::device::cpu>;
using Planes = nb::ndarray<float, nb::shape<1, 3, -1, -1>, nb::c_contig, nb::device::cpu>;
using Three = nb::ndarray<const float, nb::shape<3>, nb::c_contig, nb::device::cpu>;

// Sampling positions of OpenCV's INTER_LINEAR on one axis, as in reference.resize_taps.
struct ResizeAxis {
  std::vector<std::int32_t> first, second, weights;

  ResizeAxis(int inputs, int outputs, bool is_column) {
    const double scale = 1.0 / (static_cast<double>(outputs) / inputs);
    for (int i = 0; i < outputs; ++i) {
      float rest = static_cast<float>((i + 0.5) * scale - 0.5);
      const int at = static_cast<int>(std::floor(rest));
      rest -= static_cast<float>(at);
      // OpenCV drops the weight beyond the image along x and reads its border twice along y.
      if (is_column && (at < 0 || at >= inputs - 1)) rest = 0.0f;
      first.push_back(std::clamp(at, 0, inputs - 1));
      second.push_back(std::clamp(at + 1, 0, inputs - 1));
      const auto of_2048 = [](float w) { return static_cast<int>(std::nearbyint(w * 2048.0f)); };
      weights.push_back(of_2048(1.0f - rest) | of_2048(rest) << 16);
    }
  }

  rtseg::ResizeTaps taps() const { return {first.data(), second.data(), weights.data()}; }
};

void preprocess(const Image& bgr, const Three& scale, const Three& shift, const Planes& planes,
                const std::string& isa_name) {
  constexpr std::size_t kMaxSide = 1 << 20;  // offsets into a row are 32-bit
  if (bgr.size() == 0 || bgr.shape(0) > kMaxSide || bgr.shape(1) > kMaxSide) {
    throw std::invalid_argument("bgr: expected 1 to 2^20 pixels a side");
  }
  if (bgr.stride(2) != 1 || (bgr.stride(1) != 3 && bgr.shape(1) > 1)) {
    throw std::invalid_argument("bgr: expected pixels side by side");
  }
  const Isa& isa = find_isa(isa_name);
  const nb::gil_scoped_release release;

  const auto size = [](std::size_t n) { return static_cast<int>(n); };
  const int src_height = size(bgr.shape(0)), src_width = size(bgr.shape(1));
  const int height = size(planes.shape(2)), width = size(planes.shape(3));
  const ResizeAxis rows(src_height, height, false), columns(src_width, width, true);
  std::vector<std::int16_t> scratch(rtseg::preprocess_scratch(width));
  isa.preprocess({bgr.data(), bgr.stride(0), src_height, src_width, rows.taps(), columns.taps(),
                  scale.data(), shift.data(), planes.data(), height, width},
                 scratch.data());
}

using Labels = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<std::int64_t, nb::shape<256>, nb::c_contig, nb::device::cpu>;

void count_labels(const Labels& labels, const Counts& counts, const std::string& isa_name) {
  const Isa& isa = find_isa(isa_name);
  const nb::gil_scoped_release release;
  isa.count_labels(labels.data(), labels.size(), counts.data());
}

using Pixels = nb::ndarray<const std::uint8_t, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using Bgr = nb::ndarray<std::uint8_t, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using Colours = nb::ndarray<const float, nb::shape<256, 4>, nb::c_contig, nb::device::cpu>;

void blend(const Pixels& bgr, const Labels& labels, const Colours& colours, float rest,
           const Bgr& out, const std::string& isa_name) {
  const auto fits = [&](const auto& other) {
    return other.shape(0) == bgr.shape(0) && other.shape(1) == bgr.shape(1);
  };
  if (!fits(labels) || !fits(out)) {
    throw std::invalid_argument("labels, out: expected the size of the image");
  }
  const Isa& isa = find_isa(isa_name);
  const nb::gil_scoped_release release;
  isa.blend(bgr.data(), labels.data(), colours.data(), rest, labels.size(), out.data());
}

using Plane = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using OutPlane = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::device::cpu>;

// Whether a plane has this size, and the pixels of a row side by side.
template <class Plane>
bool fits(const Plane& plane, std::size_t rows, std::size_t columns) {
  return plane.shape(0) == rows && plane.shape(1) == columns &&
         (plane.stride(1) == 1 || columns <= 1);
}

void yuv420_to_bgr(const Plane& y, const Plane& u, const Plane& v,
                   const std::tuple<int, int, int, int, int, int>& coefficients, const Bgr& bgr,
                   const std::string& isa_name) {
  const std::size_t height = bgr.shape(0), width = bgr.shape(1);
  if (!fits(y, height, width) || !fits(u, (height + 1) / 2, (width + 1) / 2) ||
      !fits(v, (height + 1) / 2, (width + 1) / 2)) {
    throw std::invalid_argument("planes: expected rows of the image's size, then of half of it");
  }
  const auto [black, luma, red_v, green_u, green_v, blue_u] = coefficients;
  const Isa& isa = find_isa(isa_name);
  const nb::gil_scoped_release release;
  isa.yuv420_to_bgr({y.data(), u.data(), v.data(), y.stride(0), u.stride(0), v.stride(0),
                     static_cast<int>(height), static_cast<int>(width), black, luma, red_v,
                     green_u, green_v, blue_u},
                    bgr.data());
}

void to_yuv420(const Pixels& bgr, const OutPlane& luma, const OutPlane& u, const OutPlane& v,
               const std::string& isa_name) {
  const std::size_t height = bgr.shape(0), width = bgr.shape(1);
  if (height % 2 != 0 || width % 2 != 0) {
    throw std::invalid_argument("bgr: expected an even height and width");
  }
  if (!fits(luma, height, width) || !fits(u, height / 2, width / 2) ||
      !fits(v, height / 2, width / 2)) {
    throw std::invalid_argument("planes: expected rows of the image's size, then of half of it");
  }
  const Isa& isa = find_isa(isa_name);
  const nb::gil_scoped_release release;
  isa.to_yuv420({bgr.data(), bgr.stride(0), static_cast<int>(height), static_cast<int>(width),
                 luma.data(), u.data(), v.data(), luma.stride(0), u.stride(0), v.stride(0)});
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.def("upsample_argmax", &upsample_argmax, nb::arg("logits").noconvert(),
        nb::arg("labels").noconvert(), nb::arg("align_corners"), nb::arg("ignore_index"),
        nb::arg("isa") = "");
  m.def("preprocess", &preprocess, nb::arg("bgr").noconvert(), nb::arg("scale").noconvert(),
        nb::arg("shift").noconvert(), nb::arg("planes").noconvert(), nb::arg("isa") = "");
  m.def("yuv420_to_bgr", &yuv420_to_bgr, nb::arg("y").noconvert(), nb::arg("u").noconvert(),
        nb::arg("v").noconvert(), nb::arg("coefficients"), nb::arg("bgr").noconvert(),
        nb::arg("isa") = "");
  m.def("count_labels", &count_labels, nb::arg("labels").noconvert(),
        nb::arg("counts").noconvert(), nb::arg("isa") = "");
  m.def("blend", &blend, nb::arg("bgr").noconvert(), nb::arg("labels").noconvert(),
        nb::arg("colours").noconvert(), nb::arg("rest"), nb::arg("out").noconvert(),
        nb::arg("isa") = "");
  m.def("to_yuv420", &to_yuv420, nb::arg("bgr").noconvert(), nb::arg("luma").noconvert(),
        nb::arg("u").noconvert(), nb::arg("v").noconvert(), nb::arg("isa") = "");
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa& isa : isas()) names.emplace_back(isa.name);
    return names;
  });
}
