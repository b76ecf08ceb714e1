//! The layout of the text states that a UNet takes.

/// The layout of a UNet's text states. Converters differ: Apple's writes (batch, channels, 1, tokens), others
/// (batch, tokens, channels) as PyTorch has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextStatesLayout {
    /// The tokens of a channel lie side by side.
    ChannelsFirst,
    /// The channels of a token lie side by side.
    TokensFirst,
}

impl TextStatesLayout {
    /// The layout of an input of this shape (batch first) for prompts of `tokens` tokens, and its number of
    /// channels. `None` if no axis has the tokens.
    pub fn of(shape: &[usize], tokens: usize) -> Option<(Self, usize)> {
        let (_, axes) = shape.split_first()?;
        match *axes {
            [channels, 1, last] if last == tokens => Some((Self::ChannelsFirst, channels)),
            [1, first, channels] | [first, channels] if first == tokens => {
                Some((Self::TokensFirst, channels))
            }
            [channels, last] if last == tokens => Some((Self::ChannelsFirst, channels)),
            _ => None,
        }
    }

    /// The states of one prompt, (channels, tokens), in this layout.
    pub(crate) fn arranged(self, states: &[f32], tokens: usize) -> Vec<f32> {
        let channels = states.len() / tokens.max(1);
        match self {
            Self::ChannelsFirst => states.to_vec(),
            Self::TokensFirst => {
                (0..states.len()).map(|at| states[at % channels * tokens + at / channels]).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TextStatesLayout::{ChannelsFirst, TokensFirst};
    use super::*;

    #[test]
    fn the_tokens_tell_the_layout() {
        for (shape, found) in [
            (&[2, 768, 1, 77][..], Some((ChannelsFirst, 768))),
            (&[2, 77, 768], Some((TokensFirst, 768))),
            (&[2, 1, 77, 768], Some((TokensFirst, 768))),
            (&[2, 768, 77], Some((ChannelsFirst, 768))),
            // Equal numbers of channels and tokens: the rank decides, for each tool writes one order.
            (&[2, 77, 77], Some((TokensFirst, 77))),
            (&[2, 77, 1, 77], Some((ChannelsFirst, 77))),
            (&[2, 768, 1, 64], None),
            (&[2, 77, 768, 1], None),
            (&[77], None),
            (&[], None),
        ] {
            assert_eq!(TextStatesLayout::of(shape, 77), found, "{shape:?}");
        }
    }

    #[test]
    fn states_are_transposed_for_tokens_first() {
        // Two channels of three tokens.
        let states = [1.0, 2.0, 3.0, 10.0, 20.0, 30.0];
        assert_eq!(ChannelsFirst.arranged(&states, 3), states);
        assert_eq!(TokensFirst.arranged(&states, 3), [1.0, 10.0, 2.0, 20.0, 3.0, 30.0]);
    }
}
