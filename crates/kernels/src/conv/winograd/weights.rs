//! Winograd's filters: transformed and packed, a panel at a time.

use rten_simd::{Isa, SimdOp};

use super::{FLOATS, POSITIONS, WEIGHT_CHANNELS, WORDS};
use crate::blocks::ranges;
use crate::conv::shape::ConvShape;
use crate::gemm::format::{Format, PackedSide, encode_lane};
use crate::gemm::pack::transpose;
use crate::isa;
use crate::matrix::WeightSlice;
use crate::memory::{Memory, with_scratch, zeros_or_unwind};
use crate::pool::for_each_chunk_mut;
use crate::simd;
use crate::simd::microkernel::tile_shape;
use crate::simd::operands::{GROUP, Lanes};

/// The filters of a convolution.
#[derive(Clone, Copy)]
pub(crate) enum Filters<'a> {
    /// The weight as stored, and the format to pack it in.
    Stored(WeightSlice<'a>, Format),
    Packed(&'a PackedFilters),
}

/// All filters of a convolution, transformed and packed.
#[derive(Debug)]
pub(crate) struct PackedFilters {
    /// One panel after the other.
    pub(super) words: Memory<u32>,
    pub(super) format: Format,
    /// Input and output channels.
    pub(super) channels: [usize; 2],
}

impl PackedFilters {
    /// Transforms and packs a weight `[O, C, 3, 3]`.
    pub(crate) fn new(shape: &ConvShape, weight: WeightSlice<'_>, format: Format) -> Self {
        let source = FilterTransform::new(shape, weight, format);
        let mut words = zeros_or_unwind(source.panels * source.panel_len);
        source.transform(&mut words);
        Self { words, format, channels: [shape.in_channels, shape.out_channels] }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The memory that the filters of a convolution will take once they are packed, in bytes.
    pub(crate) fn bytes(shape: &ConvShape, format: Format) -> usize {
        let source = FilterTransform::new(shape, WeightSlice::F32(&[]), format);
        size_of::<u32>() * source.panels * source.panel_len
    }

    pub(crate) fn size_in_bytes(&self) -> usize {
        size_of_val(&*self.words)
    }
}

/// Transforms a weight while packing it.
pub(super) struct FilterTransform<'a> {
    weight: WeightSlice<'a>,
    format: Format,
    /// Input and output channels.
    channels: usize,
    outputs: usize,
    /// Lanes of a panel, the number of panels, and words of a panel.
    mr: usize,
    pub(super) panels: usize,
    pub(super) panel_len: usize,
}

impl<'a> FilterTransform<'a> {
    pub(super) fn new(shape: &ConvShape, weight: WeightSlice<'a>, format: Format) -> Self {
        let (channels, outputs, mr) = (shape.in_channels, shape.out_channels, tile_shape().mr);
        let panel_len = POSITIONS * format.words(channels) * mr;
        Self { weight, format, channels, outputs, mr, panels: outputs.div_ceil(mr), panel_len }
    }

    /// Transforms and packs all panels.
    pub(super) fn transform(&self, words: &mut [u32]) {
        for_each_chunk_mut(words, self.panel_len, |panel, words| self.transform_panel(panel, words));
    }

    /// Transforms and packs one panel of output channels.
    pub(super) fn transform_panel(&self, panel: usize, words: &mut [u32]) {
        let &Self { weight, format, channels, mr, .. } = self;
        let weight = weight.elements();
        let outputs = panel * mr..((panel + 1) * mr).min(self.outputs);
        let position_len = self.panel_len / POSITIONS;
        // A lane has one position after the other, each as long as in a whole block.
        let block_words = format.words(WEIGHT_CHANNELS);
        let lane_len = POSITIONS * block_words;
        if outputs.len() < mr {
            words.fill(0);
        }
        with_scratch(&FLOATS, (9 + 9 + POSITIONS) * WEIGHT_CHANNELS, |floats| {
            let (weights, floats) = floats.split_at_mut(9 * WEIGHT_CHANNELS);
            let (taps, transformed) = floats.split_at_mut(9 * WEIGHT_CHANNELS);
            with_scratch(&WORDS, GROUP * lane_len, |lanes| {
                for block in ranges(channels, WEIGHT_CHANNELS) {
                    let weights = &mut weights[..9 * block.len()];
                    if block.len() < WEIGHT_CHANNELS {
                        // The last channel may share its word with a missing one.
                        taps.fill(0.0);
                    }
                    for (output, lane) in outputs.clone().zip(lanes.chunks_exact_mut(lane_len)) {
                        let start = (output * channels + block.start) * 9;
                        let codes = weight.codes_of(start..start + weights.len());
                        let are_pairs = format == Format::Bf16x2;
                        if are_pairs
                            && codes.is_some_and(|codes| simd::look_up_filters(&codes, block.len(), lane))
                        {
                            continue;
                        }
                        weight.widen_run(start, weights);
                        split_taps(weights, taps);
                        isa::dispatch(TransformWeights { taps, transformed });
                        encode_lane(format, PackedSide::Left, transformed, lane);
                    }
                    let (start, len) = (format.words(block.start) * mr, format.words(block.len()));
                    for (position, panel) in words.chunks_exact_mut(position_len).enumerate() {
                        let words = &lanes[position * block_words..];
                        let lanes = Lanes { words, stride: lane_len, len, count: outputs.len() };
                        transpose(lanes, &mut panel[start..], mr, 0);
                    }
                }
            });
        });
    }
}

/// Transforms the filters of one output channel and some input channels.
struct TransformWeights<'a> {
    /// [`WEIGHT_CHANNELS`] elements for each of the nine taps.
    taps: &'a [f32],
    /// [`WEIGHT_CHANNELS`] elements for each position.
    transformed: &'a mut [f32],
}

impl SimdOp for TransformWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        const WIDTH: usize = 16;
        let Self { taps, transformed } = self;
        for start in (0..WEIGHT_CHANNELS).step_by(WIDTH) {
            let tap = |index: usize| -> &[f32; WIDTH] {
                taps[index * WEIGHT_CHANNELS + start..].first_chunk().expect("a block of taps")
            };
            // G g, column by column.
            let [first, second, third] = [0, 1, 2].map(|col| filter([tap(col), tap(3 + col), tap(6 + col)]));
            for (row, ((a, b), c)) in first.iter().zip(&second).zip(&third).enumerate() {
                // The row times G^T.
                let results = filter([a, b, c]);
                for (col, result) in results.iter().enumerate() {
                    let start = (4 * row + col) * WEIGHT_CHANNELS + start;
                    transformed[start..start + WIDTH].copy_from_slice(result);
                }
            }
        }
    }
}

/// Splits the weights of some channels, nine to a channel, into [`WEIGHT_CHANNELS`] elements for each tap.
fn split_taps(weights: &[f32], taps: &mut [f32]) {
    let done = simd::split_nines(weights, taps, WEIGHT_CHANNELS);
    for (channel, window) in weights.chunks_exact(9).enumerate().skip(done) {
        for (tap, weight) in window.iter().enumerate() {
            taps[tap * WEIGHT_CHANNELS + channel] = *weight;
        }
    }
}

/// `G` times three values of each lane.
#[inline(always)]
fn filter<const N: usize>([a, b, c]: [&[f32; N]; 3]) -> [[f32; N]; 4] {
    let mut results = [*a, [0.0; N], [0.0; N], *c];
    for lane in 0..N {
        let outer = 0.5 * (a[lane] + c[lane]);
        results[1][lane] = outer + 0.5 * b[lane];
        results[2][lane] = outer - 0.5 * b[lane];
    }
    results
}
