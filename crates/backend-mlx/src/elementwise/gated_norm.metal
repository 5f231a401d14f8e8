// RMS norm per head, gated by SiLU(z), computed in f32. Template: T (output type), V (width of a head, a multiple of 32);
// EPSILON is defined before. One SIMD group per head and token.
//   x [tokens, heads, V]     z, out [tokens, heads V]     weight [V]
const int lane = int(thread_position_in_threadgroup.x);
const int row = int(thread_position_in_grid.y);
constexpr int PER_LANE = V / 32;
float values[PER_LANE];
float square = 0.0f;
for (int i = 0; i < PER_LANE; ++i) {
  values[i] = x[row * V + i * 32 + lane];
  square += values[i] * values[i];
}
const float scale = metal::precise::rsqrt(simd_sum(square) / float(V) + EPSILON);
for (int i = 0; i < PER_LANE; ++i) {
  const int column = i * 32 + lane;
  const float gate = float(z[row * V + column]);
  const float gated = gate / (1.0f + metal::precise::exp(-gate));
  out[row * V + column] = static_cast<T>(values[i] * scale * weight[column] * gated);
}
