// The CUDA kernels, one entry point per element type; the .cuh files have the code and cuda.py
// launches them. Names, order and types of the parameters are part of that agreement.
#include "kernels.cuh"
#include "upsample_argmax.cuh"

#define RTSEG_KERNEL extern "C" __global__ void __launch_bounds__(rtseg::kThreads)

RTSEG_KERNEL preprocess_bgr_f32(const unsigned char* src, int pitch, int src_height, int src_width,
                                float* dst, int height, int width, double scale_y, double scale_x,
                                float scale_r, float scale_g, float scale_b, float shift_r,
                                float shift_g, float shift_b) {
  __shared__ rtseg::PreprocessShared shared;
  const rtseg::BgrImage image = {src, pitch};
  rtseg::preprocess(shared, image, src_height, src_width, dst, height, width, scale_y, scale_x,
                    {scale_r, scale_g, scale_b, shift_r, shift_g, shift_b});
}

RTSEG_KERNEL preprocess_bgr_f16(const unsigned char* src, int pitch, int src_height, int src_width,
                                unsigned short* dst, int height, int width, double scale_y,
                                double scale_x, float scale_r, float scale_g, float scale_b,
                                float shift_r, float shift_g, float shift_b) {
  __shared__ rtseg::PreprocessShared shared;
  const rtseg::BgrImage image = {src, pitch};
  rtseg::preprocess(shared, image, src_height, src_width, dst, height, width, scale_y, scale_x,
                    {scale_r, scale_g, scale_b, shift_r, shift_g, shift_b});
}

RTSEG_KERNEL preprocess_nv12_f32(const unsigned char* y, const unsigned char* uv, int pitch,
                                 int src_height, int src_width, float* dst, int height, int width,
                                 double scale_y, double scale_x, float scale_r, float scale_g,
                                 float scale_b, float shift_r, float shift_g, float shift_b,
                                 int black, int luma, int red_v, int green_u, int green_v,
                                 int blue_u) {
  __shared__ rtseg::PreprocessShared shared;
  const rtseg::Nv12Image image = {y, uv, pitch, black, luma, red_v, green_u, green_v, blue_u};
  rtseg::preprocess(shared, image, src_height, src_width, dst, height, width, scale_y, scale_x,
                    {scale_r, scale_g, scale_b, shift_r, shift_g, shift_b});
}

RTSEG_KERNEL preprocess_nv12_f16(const unsigned char* y, const unsigned char* uv, int pitch,
                                 int src_height, int src_width, unsigned short* dst, int height,
                                 int width, double scale_y, double scale_x, float scale_r,
                                 float scale_g, float scale_b, float shift_r, float shift_g,
                                 float shift_b, int black, int luma, int red_v, int green_u,
                                 int green_v, int blue_u) {
  __shared__ rtseg::PreprocessShared shared;
  const rtseg::Nv12Image image = {y, uv, pitch, black, luma, red_v, green_u, green_v, blue_u};
  rtseg::preprocess(shared, image, src_height, src_width, dst, height, width, scale_y, scale_x,
                    {scale_r, scale_g, scale_b, shift_r, shift_g, shift_b});
}

RTSEG_KERNEL upsample_argmax_f32(const float* logits, int classes, int height, int width,
                                 unsigned char* labels, int out_height, int out_width,
                                 int align_corners, int ignore_index, unsigned* counts) {
  __shared__ rtseg::UpsampleShared shared;
  const rtseg::Logits<float> in = {logits, classes, height, width};
  rtseg::upsample_argmax(shared, in, labels, out_height, out_width, align_corners != 0,
                         ignore_index, counts);
}

RTSEG_KERNEL upsample_argmax_f16(const unsigned short* logits, int classes, int height, int width,
                                 unsigned char* labels, int out_height, int out_width,
                                 int align_corners, int ignore_index, unsigned* counts) {
  __shared__ rtseg::UpsampleShared shared;
  const rtseg::Logits<unsigned short> in = {logits, classes, height, width};
  rtseg::upsample_argmax(shared, in, labels, out_height, out_width, align_corners != 0,
                         ignore_index, counts);
}

RTSEG_KERNEL blend(const unsigned char* bgr, const unsigned char* labels,
                   const unsigned char* palette, unsigned char* out, int pixels, float opacity,
                   float rest) {
  __shared__ rtseg::BlendShared shared;
  rtseg::blend(shared, bgr, labels, palette, out, pixels, opacity, rest);
}
