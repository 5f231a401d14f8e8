// SwiGLU: out = SiLU(gate) up, elementwise, computed in f32. Template: T (output type). One thread per element.
//   gate, up, out [tokens, width]
const int index = int(thread_position_in_grid.x);
if (index < int(gate_shape[0] * gate_shape[1])) {
  const float g = float(gate[index]);
  out[index] = static_cast<T>(g / (1.0f + metal::precise::exp(-g)) * float(up[index]));
}
