// The gated delta rule for one token: everything between the convolution and the gated norm. One SIMD group per value
// column of a head; its lanes split the key axis, so that each row of the state is read and written once, by whole cache
// lines, and is in registers in between.
//
// Template: KEY_HEADS, HEADS (value heads), K, V. Grid (32, V, HEADS). K is a multiple of 32.
//   mixed [2 K KEY_HEADS + V HEADS]  queries, keys, values before SiLU
//   a, b, a_log, dt_bias [HEADS]     state, state_out [HEADS, V, K]     out [HEADS, V]
const int lane = int(thread_position_in_threadgroup.x);
const int column = int(thread_position_in_grid.y);
const int head = int(thread_position_in_grid.z);
const int key_head = head / (HEADS / KEY_HEADS);
constexpr int PER_LANE = K / 32;
const int first = lane * PER_LANE;

float query[PER_LANE];
float key[PER_LANE];
float query_square = 0.0f;
float key_square = 0.0f;
for (int i = 0; i < PER_LANE; ++i) {
  const float q = float(mixed[key_head * K + first + i]);
  const float k = float(mixed[(KEY_HEADS + key_head) * K + first + i]);
  query[i] = q / (1.0f + metal::precise::exp(-q));
  key[i] = k / (1.0f + metal::precise::exp(-k));
  query_square += query[i] * query[i];
  key_square += key[i] * key[i];
}
const float query_scale = metal::precise::rsqrt(simd_sum(query_square) + 1e-6f) * metal::precise::rsqrt(float(K));
const float key_scale = metal::precise::rsqrt(simd_sum(key_square) + 1e-6f);

const float step = float(a[head]) + dt_bias[head];
const float softplus = metal::max(step, 0.0f) + metal::precise::log(1.0f + metal::precise::exp(-metal::fabs(step)));
const float decay = metal::precise::exp(-metal::precise::exp(a_log[head]) * softplus);
const float beta = 1.0f / (1.0f + metal::precise::exp(-float(b[head])));
const float raw_value = float(mixed[2 * KEY_HEADS * K + head * V + column]);
const float value = raw_value / (1.0f + metal::precise::exp(-raw_value));

const int row = (head * V + column) * K + first;
float updated[PER_LANE];
float predicted = 0.0f;
for (int i = 0; i < PER_LANE; ++i) {
  updated[i] = state[row + i] * decay;
  key[i] *= key_scale;
  predicted += updated[i] * key[i];
}
const float delta = (value - simd_sum(predicted)) * beta;
float read = 0.0f;
for (int i = 0; i < PER_LANE; ++i) {
  updated[i] += key[i] * delta;
  state_out[row + i] = updated[i];
  read += updated[i] * query[i];
}
read = simd_sum(read) * query_scale;
if (lane == 0) {
  out[head * V + column] = read;
}
