/* ROIAlign and NMS of the PyTorch side, for where torchvision is not installed: one thread, planes
   of [C, H, W], positions and weights of a box computed once for all channels, as torchvision's
   CPU kernels do. */
#include <math.h>
#include <stdlib.h>

typedef struct {
  int cell[4];
  float weight[4];
} Read;

static void place_reads(const float *box, float scale, int aligned, int height, int width, int bins,
                        int ratio, Read *reads) {
  float shift = aligned ? 0.5f : 0.0f;
  float x0 = box[0] * scale - shift, y0 = box[1] * scale - shift;
  float box_w = box[2] * scale - shift - x0, box_h = box[3] * scale - shift - y0;
  if (!aligned) {
    box_w = box_w > 1 ? box_w : 1;
    box_h = box_h > 1 ? box_h : 1;
  }
  float bin_w = box_w / bins, bin_h = box_h / bins;
  for (int by = 0; by < bins; by++)
    for (int bx = 0; bx < bins; bx++)
      for (int sy = 0; sy < ratio; sy++)
        for (int sx = 0; sx < ratio; sx++, reads++) {
          float y = y0 + by * bin_h + (sy + 0.5f) * bin_h / ratio;
          float x = x0 + bx * bin_w + (sx + 0.5f) * bin_w / ratio;
          if (y < -1 || y > height || x < -1 || x > width) {
            for (int k = 0; k < 4; k++) reads->cell[k] = 0, reads->weight[k] = 0;
            continue;
          }
          y = y > 0 ? y : 0;
          x = x > 0 ? x : 0;
          int top = (int)y, left = (int)x, bottom, right;
          if (top >= height - 1) top = bottom = height - 1, y = top; else bottom = top + 1;
          if (left >= width - 1) left = right = width - 1, x = left; else right = left + 1;
          float fy = y - top, fx = x - left;
          reads->cell[0] = top * width + left, reads->weight[0] = (1 - fy) * (1 - fx);
          reads->cell[1] = top * width + right, reads->weight[1] = (1 - fy) * fx;
          reads->cell[2] = bottom * width + left, reads->weight[2] = fy * (1 - fx);
          reads->cell[3] = bottom * width + right, reads->weight[3] = fy * fx;
        }
}

/* maps [B, C, H, W] and boxes [R, 5] (image, xyxy) -> pooled [R, C, bins, bins]; with is_gradient
   the other way round, adding into maps. */
void roi_align(float *maps, const float *boxes, float *pooled, int rois, int channels, int height,
               int width, int bins, int ratio, float scale, int aligned, int is_gradient) {
  int per_bin = ratio * ratio, area = bins * bins;
  Read *reads = malloc(sizeof(Read) * area * per_bin);
  for (int roi = 0; roi < rois; roi++) {
    const float *box = boxes + 5 * roi;
    place_reads(box + 1, scale, aligned, height, width, bins, ratio, reads);
    for (int channel = 0; channel < channels; channel++) {
      float *map = maps + ((long)box[0] * channels + channel) * height * width;
      float *out = pooled + ((long)roi * channels + channel) * area;
      const Read *read = reads;
      for (int bin = 0; bin < area; bin++) {
        float sum = 0, share = is_gradient ? out[bin] / per_bin : 0;
        for (int sample = 0; sample < per_bin; sample++, read++)
          for (int k = 0; k < 4; k++)
            if (is_gradient)
              map[read->cell[k]] += read->weight[k] * share;
            else
              sum += read->weight[k] * map[read->cell[k]];
        if (!is_gradient) out[bin] = sum / per_bin;
      }
    }
  }
  free(reads);
}

/* Boxes [N, 4] sorted by score -> is_kept [N]. */
void nms(const float *boxes, unsigned char *is_kept, int number, float threshold) {
  for (int i = 0; i < number; i++) is_kept[i] = 1;
  for (int i = 0; i < number; i++) {
    if (!is_kept[i]) continue;
    const float *a = boxes + 4 * i;
    float area = (a[2] - a[0]) * (a[3] - a[1]);
    for (int j = i + 1; j < number; j++) {
      const float *b = boxes + 4 * j;
      float w = fminf(a[2], b[2]) - fmaxf(a[0], b[0]), h = fminf(a[3], b[3]) - fmaxf(a[1], b[1]);
      if (w <= 0 || h <= 0) continue;
      float overlap = w * h;
      if (overlap / (area + (b[2] - b[0]) * (b[3] - b[1]) - overlap) > threshold) is_kept[j] = 0;
    }
  }
}
