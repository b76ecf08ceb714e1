//! Sizes of a convolution.

/// Zeros around an image, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns at the left.
    pub left: usize,
    /// Columns at the right.
    pub right: usize,
}

impl Padding {
    /// The same padding on all four sides.
    pub fn same(pixels: usize) -> Self {
        Self { top: pixels, bottom: pixels, left: pixels, right: pixels }
    }
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Input channels, all groups together.
    pub in_channels: usize,
    /// Input rows and columns.
    pub in_size: [usize; 2],
    /// Output channels, all groups together.
    pub out_channels: usize,
    /// Window rows and columns.
    pub kernel: [usize; 2],
    /// Step between windows, vertical and horizontal.
    pub stride: [usize; 2],
    /// Step within a window, vertical and horizontal; 1 for a dense window.
    pub dilation: [usize; 2],
    /// Zeros around each image.
    pub padding: Padding,
    /// Groups of channels that do not mix.
    pub groups: usize,
}

impl ConvShape {
    /// Output rows and columns; zero where the window does not fit.
    pub fn out_size(&self) -> [usize; 2] {
        let pads = [self.padding.top + self.padding.bottom, self.padding.left + self.padding.right];
        [0, 1].map(|axis| {
            let window = self.dilation[axis] * self.kernel[axis].saturating_sub(1) + 1;
            match (self.in_size[axis] + pads[axis]).checked_sub(window) {
                Some(free) if self.kernel[axis] > 0 => free / self.stride[axis] + 1,
                _ => 0,
            }
        })
    }

    /// Elements of the output `[batch, out_channels, OH, OW]`, before a gate halves the channels.
    ///
    /// # Panics
    ///
    /// When the number overflows.
    pub fn out_len(&self) -> usize {
        let [rows, cols] = self.out_size();
        self.product([self.batch, self.out_channels, rows, cols])
    }

    /// Elements of the input.
    pub(super) fn in_len(&self) -> usize {
        let [rows, cols] = self.in_size;
        self.product([self.batch, self.in_channels, rows, cols])
    }

    /// Pixels of an output channel.
    pub(super) fn pixels(&self) -> usize {
        self.product(self.out_size())
    }

    /// The depth of the matrix product: window elements of one group.
    pub(super) fn depth(&self) -> usize {
        let [rows, cols] = self.kernel;
        self.product([self.in_channels / self.groups, rows, cols])
    }

    fn product<const N: usize>(&self, sizes: [usize; N]) -> usize {
        let product = sizes.into_iter().try_fold(1_usize, usize::checked_mul);
        product.unwrap_or_else(|| panic!("the sizes of a convolution overflow: {self:?}"))
    }

    /// True if windows are single pixels in their order.
    pub(super) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == Padding::default()
    }

    /// Panics unless the groups divide the channels, and all steps are positive.
    pub(super) fn check(&self) {
        assert!(self.groups > 0, "a convolution needs at least one group");
        assert!(
            self.in_channels.is_multiple_of(self.groups) && self.out_channels.is_multiple_of(self.groups),
            "{} input and {} output channels do not divide into {} groups",
            self.in_channels,
            self.out_channels,
            self.groups
        );
        assert!(
            self.stride.iter().chain(&self.dilation).all(|&step| step > 0),
            "strides and dilations start at 1"
        );
    }
}
