// rtseg.native._cpu: the compiled kernels, and the choice of an instruction set.
//
// Arguments are checked in rtseg/native/__init__.py; here only what would crash is checked again.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pixels.h"
#include "upsample_argmax.h"

namespace nb = nanobind;

namespace {

struct Isa {
  const char* name;
  rtseg::ScratchBytes scratch_bytes;
  rtseg::Kernel upsample_argmax;
  rtseg::ToPlanes to_planes;
  rtseg::CountLabels count_labels;
};
#define RTSEG_ISA_ENTRY(isa)                                                                  \
  {#isa, rtseg::isa::scratch_bytes, rtseg::isa::upsample_argmax, rtseg::isa::to_planes,        \
   rtseg::isa::count_labels}

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

void to_planes(const Image& bgr, const Three& scale, const Three& shift, const Planes& planes,
               const std::string& isa_name) {
  if (planes.shape(2) != bgr.shape(0) || planes.shape(3) != bgr.shape(1)) {
    throw std::invalid_argument("planes: expected the size of the image");
  }
  if (bgr.stride(2) != 1 || bgr.stride(1) != 3) {
    throw std::invalid_argument("bgr: expected pixels side by side");
  }
  const Isa& isa = find_isa(isa_name);
  const nb::gil_scoped_release release;
  isa.to_planes(bgr.data(), bgr.stride(0), static_cast<int>(bgr.shape(0)),
                static_cast<int>(bgr.shape(1)), scale.data(), shift.data(), planes.data());
}

using Labels = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<std::int64_t, nb::shape<256>, nb::c_contig, nb::device::cpu>;

void count_labels(const Labels& labels, const Counts& counts, const std::string& isa_name) {
  const Isa& isa = find_isa(isa_name);
  const nb::gil_scoped_release release;
  isa.count_labels(labels.data(), labels.size(), counts.data());
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.def("upsample_argmax", &upsample_argmax, nb::arg("logits").noconvert(),
        nb::arg("labels").noconvert(), nb::arg("align_corners"), nb::arg("ignore_index"),
        nb::arg("isa") = "");
  m.def("to_planes", &to_planes, nb::arg("bgr").noconvert(), nb::arg("scale").noconvert(),
        nb::arg("shift").noconvert(), nb::arg("planes").noconvert(), nb::arg("isa") = "");
  m.def("count_labels", &count_labels, nb::arg("labels").noconvert(),
        nb::arg("counts").noconvert(), nb::arg("isa") = "");
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa& isa : isas()) names.emplace_back(isa.name);
    return names;
  });
}
