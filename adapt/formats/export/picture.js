// From a picture's pixels to what the model reads: the numbers that Pillow's `resize` gives, which no canvas does.

const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (x === 0 ? 1 : Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)))],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const ONE = 2 ** 22; // weights are whole numbers of this share, as Pillow has them for pixels of 8 bits

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function cubic(x) {
  const a = -0.5, t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
}

// For each of `to` pixels the first of the `from` pixels that it is made of, and their weights.
function weightsOf(from, to, interpolation) {
  const scale = from / to;
  if (interpolation === "nearest") {
    return Array.from({ length: to }, (_, i) => ({ first: Math.floor((i + 0.5) * scale), weights: [ONE] }));
  }
  const [reach, filter] = FILTERS[interpolation], wider = Math.max(scale, 1), support = reach * wider;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const raw = [];
    for (let x = first; x < end; x++) raw.push(filter((x - centre + 0.5) / wider));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, weights: raw.map((w) => Math.trunc((w / sum) * ONE + (w < 0 ? -0.5 : 0.5))) };
  });
}

// Rows of RGB pixels, `data` being height x width x 3, along one axis.
function resized(picture, axis, to, interpolation) {
  const { width, height, data } = picture, from = axis === 0 ? width : height;
  if (from === to) return picture;
  const wide = axis === 0 ? to : width, high = axis === 0 ? height : to;
  const made = new Uint8ClampedArray(wide * high * 3), step = axis === 0 ? 3 : 3 * width;
  const all = weightsOf(from, to, interpolation);
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      const { first, weights } = all[axis === 0 ? x : y];
      const start = 3 * (axis === 0 ? y * width + first : first * width + x);
      for (let channel = 0; channel < 3; channel++) {
        let sum = ONE / 2;
        for (let i = 0; i < weights.length; i++) sum += weights[i] * data[start + i * step + channel];
        made[3 * (y * wide + x) + channel] = Math.floor(sum / ONE);
      }
    }
  }
  return { width: wide, height: high, data: made };
}

function resize(picture, width, height, interpolation) {
  return resized(resized(picture, 0, width, interpolation), 1, height, interpolation);
}

function halfToEven(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2) : Math.round(x);
}

// How many pixels are cut off at the start of an edge; a negative number of black ones is put there.
function margin(edge, size, floorCrop) {
  if (edge < size) return -Math.floor((size - edge) / 2);
  return floorCrop ? Math.floor((edge - size) / 2) : halfToEven((edge - size) / 2);
}

// RGB pixels `{width, height, data}` to a Float32Array of 3 x size x size.
function prepare(picture, how) {
  const { size, interpolation } = how, edge = how.edge ?? size;
  let { width, height } = picture;
  if (how.resize === "squash") [width, height] = [size, size];
  else if (width <= height) [width, height] = [edge, Math.trunc((edge * height) / width)];
  else [width, height] = [Math.trunc((edge * width) / height), edge];
  const small = resize(picture, width, height, interpolation);
  const left = margin(width, size, how.floor_crop), top = margin(height, size, how.floor_crop);
  const read = new Float32Array(3 * size * size);
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const inside = x + left >= 0 && x + left < width && y + top >= 0 && y + top < height;
        const value = inside ? small.data[3 * ((y + top) * width + x + left) + channel] : 0;
        read[(channel * size + y) * size + x] = (value / 255 - how.mean[channel]) / how.std[channel];
      }
    }
  }
  return read;
}
