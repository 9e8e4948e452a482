//! Captions: read, completed with the trigger word, varied.

use tenggat_tensor::random::Philox;

use crate::job;

/// Variants of a caption whose parts are shuffled or left out at random. Text embeddings are computed before
/// training, so the variants are drawn once; this many keep the cache small and the order new.
const VARIANTS: u64 = 8;

/// How captions are made; of one data set.
pub(super) struct Captions<'a> {
    pub set: &'a job::Dataset,
    /// As ai-toolkit leaves them: not trimmed, ", " for every comma.
    pub upstream_spaces: bool,
    pub random: Philox,
}

impl Captions<'_> {
    /// The captions of a picture: one, or several variants. `file` is the text of its caption file.
    pub(super) fn of(&self, file: Option<&str>, stream: u64) -> Vec<String> {
        let text = match file.filter(|t| !t.trim().is_empty()) {
            Some(text) => text,
            None => self.set.default_caption.as_deref().or(file).unwrap_or_default(),
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let text = if self.upstream_spaces { text } else { text.trim() };
        let set = self.set;
        if !set.shuffle_tokens && set.token_dropout_rate == 0.0 && set.random_triggers.is_empty() {
            // Upstream splits and joins even so, which doubles the space after every comma.
            let text = if self.upstream_spaces { text.replace(',', ", ") } else { text.into() };
            return vec![self.with_trigger(text)];
        }
        let mut variants: Vec<String> =
            (0..VARIANTS).map(|i| self.with_trigger(self.vary(text, stream * VARIANTS + i))).collect();
        variants.sort();
        variants.dedup();
        variants
    }

    /// The caption of a picture whose caption is dropped: the trigger word, if there is one.
    pub(super) fn dropped(&self) -> String {
        self.with_trigger(String::new())
    }

    /// Leaves out and shuffles comma-separated parts, except the first `keep_tokens`, and puts random
    /// triggers behind.
    fn vary(&self, text: &str, stream: u64) -> String {
        let parts: Vec<&str> =
            text.split(',').map(|p| if self.upstream_spaces { p } else { p.trim() }).collect();
        let (kept, free) = parts.split_at(self.set.keep_tokens.min(parts.len()));
        let mut free: Vec<&str> = free
            .iter()
            .enumerate()
            .filter(|(i, _)| self.random.uniform(stream, *i as u64) >= self.set.token_dropout_rate)
            .map(|(_, part)| *part)
            .collect();
        if self.set.shuffle_tokens {
            super::shuffle(&mut free, self.random, stream ^ SHUFFLE);
        }
        let triggers = self.triggers(stream);
        let mut parts = [kept, &free].concat();
        parts.extend(triggers);
        parts.join(", ")
    }

    /// One of the random triggers, or a random number of them up to their maximum, in random order.
    fn triggers(&self, stream: u64) -> Vec<&str> {
        let (stream, most) = (stream ^ TRIGGERS, self.set.random_triggers_max);
        let count = if most > 1 { self.random.below(stream, 0, most + 1) } else { most };
        let mut words: Vec<&str> = self.set.random_triggers.iter().map(String::as_str).collect();
        super::shuffle(&mut words, self.random, stream ^ SHUFFLE);
        words.truncate(count);
        words
    }

    /// `[trigger]` and `[name]` become the trigger word; it comes first where a caption lacks it.
    /// Source: ai-toolkit `toolkit/prompt_utils.py`, `inject_trigger_into_prompt`.
    fn with_trigger(&self, caption: String) -> String {
        let trigger = self.set.trigger_word.as_deref().unwrap_or_default();
        let caption = caption.replace("[name]", trigger).replace("[trigger]", trigger);
        if self.set.is_reg || trigger.trim().is_empty() || caption.contains(trigger) {
            return caption;
        }
        if caption.is_empty() && !self.upstream_spaces {
            trigger.into()
        } else {
            format!("{trigger} {caption}")
        }
    }
}

/// Keeps the numbers that shuffle apart from those that leave out.
const SHUFFLE: u64 = 1 << 63;
/// Keeps the numbers that choose triggers apart from both.
const TRIGGERS: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::super::tests::set;
    use super::*;

    fn captions(set: &job::Dataset, file: Option<&str>) -> Vec<String> {
        Captions { set, upstream_spaces: false, random: Philox::new(1) }.of(file, 0)
    }

    #[test]
    fn blank_captions_become_the_default() {
        let mut set = set("p");
        assert_eq!(captions(&set, None), [""]);
        set.default_caption = Some("a pear".into());
        assert_eq!(captions(&set, None), ["a pear"]);
        assert_eq!(captions(&set, Some(" \n")), ["a pear"]);
        assert_eq!(captions(&set, Some("\u{feff}red, ripe\r\n")), ["red, ripe"]);
    }

    #[test]
    fn upstreams_spaces_come_back_on_request() {
        let set = set("p");
        let captions = Captions { set: &set, upstream_spaces: true, random: Philox::new(1) };
        assert_eq!(captions.of(Some("red, ripe,big\n"), 0), ["red,  ripe, big\n"]);
    }

    #[test]
    fn the_trigger_word_is_put_in() {
        let mut set = set("p");
        assert_eq!(captions(&set, Some("a [trigger] pear")), ["a  pear"]);
        set.trigger_word = Some("p3ar".into());
        assert_eq!(captions(&set, Some("a [trigger] pear")), ["a p3ar pear"]);
        assert_eq!(captions(&set, Some("a pear")), ["p3ar a pear"]);
        assert_eq!(captions(&set, Some("the p3ar")), ["the p3ar"]);
        let ours = Captions { set: &set, upstream_spaces: false, random: Philox::new(1) };
        assert_eq!(ours.dropped(), "p3ar");
        let upstream = Captions { set: &set, upstream_spaces: true, random: Philox::new(1) };
        assert_eq!(upstream.dropped(), "p3ar ");
    }

    #[test]
    fn parts_are_shuffled_and_left_out_but_the_first_are_kept() {
        let mut set = set("p");
        set.shuffle_tokens = true;
        set.keep_tokens = 1;
        let shuffled = captions(&set, Some("a, b, c, d"));
        assert!(shuffled.len() > 2, "{shuffled:?}");
        for caption in &shuffled {
            let mut parts: Vec<_> = caption.split(", ").collect();
            assert_eq!(parts[0], "a");
            parts.sort();
            assert_eq!(parts, ["a", "b", "c", "d"]);
        }
        assert_eq!(shuffled, captions(&set, Some("a, b, c, d")));
        set.token_dropout_rate = 1.0;
        assert_eq!(captions(&set, Some("a, b, c, d")), ["a"]);
    }

    #[test]
    fn random_triggers_come_last() {
        let mut set = set("p");
        set.random_triggers = ["x", "y", "z"].map(String::from).to_vec();
        set.random_triggers_max = 1;
        let one = captions(&set, Some("a, b"));
        assert!(one.len() > 1 && one.iter().all(|c| ["a, b, x", "a, b, y", "a, b, z"].contains(&c.as_str())));
        set.random_triggers_max = 3;
        let several = captions(&set, Some("a"));
        let counts: Vec<usize> = several.iter().map(|c| c.split(", ").count() - 1).collect();
        assert!(counts.iter().all(|&n| n <= 3) && counts.iter().any(|&n| n != 1), "{several:?}");
    }
}
