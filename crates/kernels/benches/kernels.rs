//! Throughput of the heavy kernels at the UNets' shapes, against this machine's measured peak.
//!
//! `cargo bench -p mixbit-kernels [-- FILTER...]`, on a quiet machine, runs the cases whose names contain all
//! filters. Judge the ratio to the peak, and compare within one run: absolute numbers drift with the machine.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use half::f16;
use mixbit_kernels::*;

/// The shortest measurement in seconds: its body is repeated that long.
const LEAST: f64 = 0.3;

/// The median duration of a call in seconds.
fn seconds(mut body: impl FnMut()) -> f64 {
    body();
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 5 || start.elapsed().as_secs_f64() < LEAST {
        let call = Instant::now();
        body();
        times.push(call.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The precisions that this CPU has instructions for.
fn precisions() -> impl Iterator<Item = Precision> {
    Precision::ALL.into_iter().filter(|precision| precision.is_native())
}

/// Values in memory aligned as the engine's.
fn data(len: usize) -> Memory<f32> {
    let mut values = zeros(len);
    for (index, value) in values.iter_mut().enumerate() {
        *value = ((index * 7919) % 2048) as f32 / 1024.0 - 1.0;
    }
    values
}

fn zeros(len: usize) -> Memory<f32> {
    Memory::zeros(len).expect("memory")
}

struct Report {
    /// The measured multiply-add peak of each precision of this CPU.
    peaks: Vec<(Precision, f64)>,
    filters: Vec<String>,
}

impl Report {
    fn asks_for(&self, name: &str) -> bool {
        self.filters.iter().all(|filter| name.contains(filter.as_str()))
    }

    /// Reports a kernel's rate of arithmetic.
    fn flops(&self, precision: Precision, name: &str, flops: f64, body: impl FnMut()) {
        let name = format!("{name} {precision}");
        if !self.asks_for(&name) {
            return;
        }
        let time = seconds(body);
        let rate = flops / time;
        let shares: Vec<String> = self
            .peaks
            .iter()
            .filter(|(other, _)| *other == precision || *other == Precision::F32)
            .map(|(other, peak)| format!("{:>6.1}% of {other} peak", 100.0 * rate / peak))
            .collect();
        println!("{name:<52} {:>9.3} ms {:>8.1} GFLOP/s {}", time * 1e3, rate / 1e9, shares.join(", "));
    }

    /// Reports a kernel's rate of memory traffic.
    fn bytes(&self, name: &str, bytes: usize, body: impl FnMut()) {
        if !self.asks_for(name) {
            return;
        }
        let time = seconds(body);
        println!("{name:<44} {:>9.3} ms {:>8.1} GB/s", time * 1e3, bytes as f64 / time / 1e9);
    }
}

fn bench_gemm(report: &Report) {
    for [m, k, n] in [
        [4096, 320, 320],
        [4096, 320, 2560],
        [4096, 640, 640],
        [1024, 640, 5120],
        [1024, 1280, 1280],
        [256, 1280, 1280],
        [256, 1280, 10240],
        [77, 768, 768],
        [2, 1280, 1280],
    ] {
        let (left, weight, mut out) = (data(m * k), data(k * n), zeros(m * n));
        let halves: Vec<f16> = weight.iter().map(|x| f16::from_f32(*x)).collect();
        let flops = 2.0 * (m * k * n) as f64;
        let mut run = |name: &str, precision: Precision, right: Operand<'_>| {
            report.flops(precision, &format!("gemm {m}x{k}x{n} {name}"), flops, || {
                let left = Mat::new(&left[..], m, k).into();
                gemm(MatMut::new(&mut out, m, n), left, right, precision, &Epilogue::default());
            });
        };
        for precision in precisions() {
            run("f32 weight", precision, WeightSlice::F32(&weight).transposed_matrix(n, k).into());
            run("f16 weight", precision, WeightSlice::F16(&halves).transposed_matrix(n, k).into());
            let right = WeightSlice::F32(&weight).transposed_matrix(n, k);
            let packed = PackedMatrix::new(right, PackedSide::Right, precision);
            run("packed weight", precision, Operand::Packed(&packed));
        }
    }
}

/// A palettized weight of `rows`x`columns`: indices of `bits` bits, and one palette for each group of rows.
struct Palette {
    codes: Vec<u8>,
    bits: usize,
    tables: Memory<f32>,
    grid: BlockGrid,
    len: usize,
    scales: Option<(Vec<f16>, BlockGrid)>,
}

impl Palette {
    fn new(rows: usize, columns: usize, bits: usize, groups: usize) -> Self {
        let len = rows * columns;
        let codes = (0..(len * bits).div_ceil(8)).map(|index| ((index * 7919) >> 3) as u8).collect();
        let grid = BlockGrid { columns, block: [rows / groups, columns] };
        Self { codes, bits, tables: data(groups << bits), grid, len, scales: None }
    }

    /// Linear quantization with a scale for every `block` elements of a row.
    fn linear(rows: usize, columns: usize, bits: usize, block: usize) -> Self {
        let grid = BlockGrid { columns, block: [1, block] };
        let scales = data(rows * columns / block).iter().map(|x| f16::from_f32(*x)).collect();
        Self { scales: Some((scales, grid)), ..Self::new(rows, columns, bits, 1) }
    }

    fn slice(&self) -> WeightSlice<'_> {
        let scaling = match &self.scales {
            Some((scales, grid)) => Scaling::F16(Affine { scale: (scales, *grid), offset: None }),
            None => Scaling::None,
        };
        let tables = (&self.tables[..], self.grid);
        WeightSlice::Encoded(Encoded::new(&self.codes, self.bits, self.len, tables, scaling))
    }
}

/// Schemes of compressed weights that are timed.
fn palettes(rows: usize, columns: usize) -> Vec<(String, Palette)> {
    let mut forms: Vec<(String, Palette)> = [1, 2, 3, 4, 6, 8]
        .into_iter()
        .map(|bits| (format!("{bits}-bit palette"), Palette::new(rows, columns, bits, 1)))
        .collect();
    forms.push(("4-bit palettes of 16 rows".into(), Palette::new(rows, columns, 4, rows / 16)));
    forms.push(("linear 8-bit by row".into(), Palette::linear(rows, columns, 8, columns)));
    forms.push(("linear 4-bit by 32".into(), Palette::linear(rows, columns, 4, 32)));
    forms
}

/// The cost of decoding: each scheme in turn with half precision, so that the machine's drift affects both.
fn bench_encoded(report: &Report) {
    for [pixels, depth, outs] in [[4096, 2880, 320], [1024, 5760, 640], [256, 1280, 1280], [2, 1280, 1280]] {
        let (tokens, mut out) = (data(pixels * depth), zeros(pixels * outs));
        let halves: Vec<f16> = data(outs * depth).iter().map(|x| f16::from_f32(*x)).collect();
        for precision in
            [Precision::F32, Precision::Bf16].into_iter().filter(|precision| precision.is_native())
        {
            for (form, palette) in palettes(outs, depth) {
                let name = format!("encoded {pixels}x{depth}x{outs} {form} {precision}");
                if !report.asks_for(&name) {
                    continue;
                }
                let mut time = |weight: WeightSlice<'_>| {
                    let start = Instant::now();
                    let left = Mat::new(&tokens[..], pixels, depth).into();
                    let right = weight.transposed_matrix(outs, depth).into();
                    let out = MatMut::new(&mut out, pixels, outs);
                    gemm(out, left, right, precision, &Epilogue::default());
                    start.elapsed().as_secs_f64()
                };
                let mut ratios = Vec::new();
                let (start, mut least) = (Instant::now(), f64::INFINITY);
                while ratios.len() < 5 || start.elapsed().as_secs_f64() < 4.0 * LEAST {
                    let dense = time(WeightSlice::F16(&halves));
                    let encoded = time(palette.slice());
                    least = encoded.min(least);
                    ratios.push(encoded / dense);
                }
                ratios.sort_by(f64::total_cmp);
                let ratio = ratios[ratios.len() / 2];
                println!("{name:<60} {:>9.3} ms at best {ratio:>6.3} of f16", least * 1e3);
            }
        }
    }
}

fn bench_conv(report: &Report) {
    for (channels, out_channels, size, kernel) in [
        (320, 320, 64, 3),
        (640, 640, 32, 3),
        (1280, 1280, 16, 3),
        (1280, 1280, 8, 3),
        (320, 320, 64, 1),
        (320, 2560, 64, 1),
        (1280, 320, 64, 1),
        (640, 640, 64, 1),
        (640, 640, 32, 1),
        (640, 5120, 32, 1),
        (2560, 640, 32, 1),
        (1280, 1280, 32, 1),
        (1280, 1280, 16, 1),
        (1280, 10240, 16, 1),
        (5120, 1280, 16, 1),
        (1280, 1280, 8, 1),
        (128, 128, 256, 3),
        (128, 3, 256, 3),
        (64, 64, 16, 3),
    ] {
        let shape = ConvShape {
            batch: 2,
            in_channels: channels,
            in_size: [size, size],
            out_channels,
            kernel: [kernel, kernel],
            stride: [1, 1],
            dilation: [1, 1],
            padding: Padding::same(kernel / 2),
            groups: 1,
        };
        let depth = channels * kernel * kernel;
        let (input, weight) = (data(2 * channels * size * size), data(out_channels * depth));
        let halves: Vec<f16> = weight.iter().map(|x| f16::from_f32(*x)).collect();
        let mut out = zeros(shape.out_len());
        let flops = 2.0 * (out.len() * depth) as f64;
        for precision in precisions() {
            let packed = pack_conv_weight(&shape, WeightSlice::F32(&weight), precision);
            for (name, weight) in [
                ("f16 weight", ConvWeight::Stored(WeightSlice::F16(&halves))),
                ("packed weight", ConvWeight::Packed(&packed)),
            ] {
                let name = format!("conv {kernel}x{kernel} {channels}->{out_channels} at {size} {name}");
                report.flops(precision, &name, flops, || {
                    conv2d(&shape, &input, weight, precision, &Epilogue::default(), &mut out);
                });
            }
        }
    }
}

/// Stable Diffusion's attentions; channel-major as in Apple's packages, whose projections are 1x1
/// convolutions.
fn bench_attention(report: &Report) {
    type Layout = fn(usize, usize, usize) -> HeadLayout;
    let layouts: [(&str, Layout); 2] =
        [("", HeadLayout::token_major), (" channel-major", HeadLayout::channel_major)];
    for (heads, queries, keys, dim) in [
        (8, 4096, 4096, 40),
        (5, 4096, 4096, 64),
        (10, 4096, 4096, 64),
        (8, 1024, 1024, 80),
        (8, 256, 256, 160),
        (20, 256, 256, 64),
        (8, 4096, 77, 40),
        (8, 1024, 77, 80),
        (10, 1024, 77, 64),
        (4, 64, 77, 32),
    ] {
        let shape = AttentionShape { batch: 1, heads, queries, keys, dim, value_dim: dim };
        let (query, key) = (data(heads * queries * dim), data(heads * keys * dim));
        let mut out = zeros(query.len());
        let flops = 4.0 * (heads * queries * keys * dim) as f64;
        for (suffix, layout_of) in layouts {
            let layout = layout_of(heads, queries, dim);
            let key_layout = layout_of(heads, keys, dim);
            let args = Attention {
                shape,
                query: Heads { data: &query, layout },
                key: Heads { data: &key, layout: key_layout },
                value: Heads { data: &key, layout: key_layout },
                scale: 1.0 / (dim as f32).sqrt(),
                mask: None,
                partition: Partition::of(&shape),
            };
            let name = format!("attention {queries}x{keys} {heads} heads of {dim}{suffix}");
            for precision in [Precision::F32, Precision::Bf16] {
                report.flops(precision, &name, flops, || attention(&args, precision, &mut out, layout));
            }
        }
    }
}

fn bench_passes(report: &Report) {
    let len = 320 * 64 * 64 * 2;
    let (input, other) = (data(len), data(len));
    let mut out = zeros(len);
    let bytes = 2 * 4 * len;
    let group = GroupNormShape { batch: 2, channels: 320, spatial: 4096, groups: 32 };
    let scale = data(320);
    let mut params = NormParams {
        gamma: Some(&scale),
        beta: Some(&scale),
        epsilon: 1e-5,
        activation: Some(UnaryOp::Silu),
    };
    report.bytes("group norm + SiLU 2x320x64x64", bytes, || group_norm(&group, &input, &params, &mut out));
    params.activation = None;
    let rows = AxisShape { outer: 8192, axis: 320, inner: 1 };
    report.bytes("layer norm 8192x320, last axis", bytes, || layer_norm(&rows, &input, &params, &mut out));
    let planes = AxisShape { outer: 2, axis: 320, inner: 4096 };
    report.bytes("layer norm 2x320x4096, channel axis", bytes, || {
        layer_norm(&planes, &input, &params, &mut out)
    });
    report.bytes("softmax 8192x320", bytes, || softmax(&rows, &input, &mut out));
    for op in [UnaryOp::Silu, UnaryOp::Gelu, UnaryOp::GeluTanh, UnaryOp::Erf, UnaryOp::Exp] {
        report.bytes(&format!("{op:?} of {len}"), bytes, || unary(op, &input, &mut out));
    }
    report.bytes("geglu 8192x160", bytes * 3 / 4, || geglu(&input, 160, &mut out[..len / 2]));
    report.bytes("add in place", bytes * 3 / 2, || binary_in_place(BinaryOp::Add, &mut out, &other));
    let (shape, channel) = ([2, 320, 4096], [0, 1, 0]);
    let strides = contiguous_strides(&shape);
    let x = Strided { data: &input, strides: &strides[..3] };
    let y = Strided { data: &scale, strides: &channel };
    report.bytes("add per channel", bytes, || binary(BinaryOp::Add, x, y, &shape, &mut out));
    report.bytes("permute [2,320,4096] to [2,4096,320]", bytes, || {
        permute(&input, &shape, &[0, 2, 1], &mut out)
    });
    report.bytes("permute [2,64,64,8,40] to heads", bytes, || {
        permute(&input, &[2, 4096, 8, 40], &[0, 2, 1, 3], &mut out);
    });
    let (small, mut large) = (data(len / 4), zeros(len));
    report.bytes("upsample 2x2", 5 * len, || upsample_nearest(&small, 640, [32, 32], [2, 2], &mut large));
    let mut halves = vec![f16::ZERO; len];
    report.bytes("f32 to f16", 6 * len, || convert::f32_to_f16(&input, &mut halves));
    report.bytes("f16 to f32", 6 * len, || convert::f16_to_f32(&halves, &mut out));
    let (tiny, mut tiny_out) = (data(64 * 256), zeros(64 * 256));
    report.bytes("Silu of 16384", 8 * tiny.len(), || unary(UnaryOp::Silu, &tiny, &mut tiny_out));
}

/// The round trip of a cache line between two threads. It takes several times as long between cores that
/// share no cache, and so does reading what another thread wrote.
fn bench_handover(report: &Report) {
    const TURNS: usize = 20_000;
    let name = "a cache line to another thread and back";
    if !report.asks_for(name) {
        return;
    }
    let turn = AtomicUsize::new(0);
    let play = |first: usize| {
        for mine in (first..2 * TURNS).step_by(2) {
            while turn.load(Ordering::Acquire) != mine {
                std::hint::spin_loop();
            }
            turn.store(mine + 1, Ordering::Release);
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| play(1));
        play(0);
    });
    println!("{name:<44} {:>9.0} ns", start.elapsed().as_secs_f64() / TURNS as f64 * 1e9);
}

fn main() {
    let filters = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let threads = std::env::var("THREADS").ok().and_then(|threads| threads.parse().ok());
    let pool = ThreadPool::new(threads).expect("worker threads");
    let peaks: Vec<(Precision, f64)> = Precision::ALL
        .into_iter()
        .filter_map(|precision| Some((precision, peak::measure(precision, &pool)?)))
        .collect();
    println!("{} threads, multiply-add peaks in Gop/s: {}", pool.threads(), {
        let one = |(precision, rate): &(Precision, f64)| format!("{precision} {:.1}", rate / 1e9);
        peaks.iter().map(one).collect::<Vec<_>>().join(", ")
    });
    pool.install(|| {
        let report = Report { peaks, filters };
        bench_gemm(&report);
        bench_encoded(&report);
        bench_conv(&report);
        bench_attention(&report);
        bench_passes(&report);
        bench_handover(&report);
    });
}
