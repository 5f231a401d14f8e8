// Depthwise causal convolution and the next convolution window, summed in f32. Template: T (output type), TAPS, CHANNELS.
// Grid (CHANNELS, tokens).
//   window, window_out [TAPS - 1, CHANNELS]     x, out [tokens, CHANNELS]     weight [TAPS, CHANNELS]
const int channel = int(thread_position_in_grid.x);
const int token = int(thread_position_in_grid.y);
const int tokens = int(x_shape[0]);
if (channel < CHANNELS) {
  float sum = 0.0f;
  for (int tap = 0; tap < TAPS; ++tap) {
    const int source = token + tap - (TAPS - 1);
    const float value = source < 0 ? float(window[(source + TAPS - 1) * CHANNELS + channel])
                                   : float(x[source * CHANNELS + channel]);
    sum += value * float(weight[tap * CHANNELS + channel]);
  }
  out[token * CHANNELS + channel] = static_cast<T>(sum);
  if (token == 0) {
    for (int row = 0; row < TAPS - 1; ++row) {
      const int source = tokens + row - (TAPS - 1);
      window_out[row * CHANNELS + channel] = source < 0 ? window[(source + TAPS - 1) * CHANNELS + channel]
                                                        : x[source * CHANNELS + channel];
    }
  }
}
