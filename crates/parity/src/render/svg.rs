//! Small plots as inline SVG: axes, points, lines, bars.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;

/// What an axis shows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// From, to.
    Linear(f64, f64),
    /// Powers of ten: lowest and highest exponent. What is below the lowest, zero included, sits on the border.
    Decades(i32, i32),
}

impl Scale {
    /// Decades that hold all positive values, at least one; `floor` is the lowest exponent worth showing.
    pub(super) fn decades(values: impl Iterator<Item = f64>, floor: i32) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite() && *v > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            return Self::Decades(floor, floor + 1);
        }
        let high = (high.log10().ceil() as i32).max(floor + 1);
        let low = (low.log10().floor() as i32).clamp(floor, high - 1);
        Self::Decades(low, high)
    }

    /// Place of a value, 0 to 1.
    fn place(self, value: f64) -> f64 {
        let part = match self {
            Self::Linear(from, to) => (value - from) / (to - from),
            Self::Decades(from, to) => {
                (value.max(f64::MIN_POSITIVE).log10() - f64::from(from)) / f64::from(to - from)
            }
        };
        if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) }
    }

    fn ticks(self) -> Vec<(f64, String)> {
        match self {
            Self::Linear(from, to) => {
                let raw = (to - from) / 6.0;
                let magnitude = 10f64.powf(raw.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0]
                    .into_iter()
                    .map(|m| m * magnitude)
                    .find(|s| *s >= raw)
                    .unwrap_or(raw);
                let first = (from / step).ceil() as i64;
                let last = (to / step + 1e-9).floor() as i64;
                let decimals = (-step.log10().floor()).max(0.0) as usize;
                (first..=last).map(|i| (i as f64 * step, format!("{:.decimals$}", i as f64 * step))).collect()
            }
            Self::Decades(from, to) => {
                let every = ((to - from) / 8).max(0) + 1;
                (from..=to)
                    .filter(|e| (e - from) % every == 0)
                    .map(|e| (10f64.powi(e), format!("1e{e}")))
                    .collect()
            }
        }
    }
}

/// One plot, being drawn.
pub(super) struct Plot {
    body: String,
    x: Scale,
    y: Scale,
    legend: Vec<(String, &'static str)>,
}

impl Plot {
    pub(super) fn new(x: Scale, y: Scale, x_title: &str, y_title: &str) -> Self {
        let mut plot = Self { body: String::new(), x, y, legend: Vec::new() };
        for (value, label) in y.ticks() {
            let at = plot.at_y(value);
            plot.push(format_args!(
                "<line class='grid' x1='{LEFT}' x2='{:.1}' y1='{at:.1}' y2='{at:.1}'/>\
                 <text x='{:.1}' y='{:.1}' text-anchor='end'>{label}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 3.5
            ));
        }
        for (value, label) in x.ticks() {
            let at = plot.at_x(value);
            plot.push(format_args!(
                "<line class='tick' x1='{at:.1}' x2='{at:.1}' y1='{:.1}' y2='{:.1}'/>\
                 <text x='{at:.1}' y='{:.1}' text-anchor='middle'>{label}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 4.0,
                HEIGHT - BOTTOM + 16.0
            ));
        }
        plot.push(format_args!(
            "<text class='title' x='{:.1}' y='{:.1}' text-anchor='middle'>{}</text>\
             <text class='title' x='14' y='{:.1}' text-anchor='middle' transform='rotate(-90 14 {:.1})'>{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 8.0,
            escape(x_title),
            (TOP + HEIGHT - BOTTOM) / 2.0,
            (TOP + HEIGHT - BOTTOM) / 2.0,
            escape(y_title)
        ));
        plot
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.body.write_fmt(text).expect("writing to a string does not fail");
    }

    fn at_x(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn at_y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)
    }

    /// Names a colour below the plot.
    pub(super) fn legend(&mut self, name: &str, color: &'static str) {
        self.legend.push((name.to_owned(), color));
    }

    /// A line through points, in their order.
    pub(super) fn line(&mut self, points: impl Iterator<Item = (f64, f64)>, color: &str) {
        let mut path = String::new();
        for (index, (x, y)) in points.enumerate() {
            let command = if index == 0 { 'M' } else { 'L' };
            write!(path, "{command}{:.1} {:.1}", self.at_x(x), self.at_y(y)).expect("a string");
        }
        self.push(format_args!("<path d='{path}' fill='none' stroke='{color}' stroke-width='1.3'/>"));
    }

    /// A dot; `note` is shown when the pointer rests on it.
    pub(super) fn dot(&mut self, x: f64, y: f64, radius: f64, color: &str, note: &str) {
        let (x, y) = (self.at_x(x), self.at_y(y));
        self.push(format_args!(
            "<circle cx='{x:.1}' cy='{y:.1}' r='{radius:.1}' fill='{color}' fill-opacity='.75'><title>{}</title></circle>",
            escape(note)
        ));
    }

    /// A bar from the bottom, between two values of x.
    pub(super) fn bar(&mut self, from: f64, to: f64, y: f64, color: &str, note: &str) {
        let (left, right, top) = (self.at_x(from), self.at_x(to), self.at_y(y));
        let bottom = HEIGHT - BOTTOM;
        self.push(format_args!(
            "<rect x='{left:.1}' y='{top:.1}' width='{:.1}' height='{:.1}' fill='{color}' fill-opacity='.8'><title>{}</title></rect>",
            (right - left - 0.6).max(0.5),
            (bottom - top).max(0.0),
            escape(note)
        ));
    }

    /// Thin lines from bottom to top, in ascending order of x, each with a word at its head. Words that would cover one
    /// another move aside, so that a word stands at its line or as near to it as there is room.
    pub(super) fn dividers(&mut self, places: &[(f64, &str)]) {
        let lines: Vec<f64> = places.iter().map(|(x, _)| self.at_x(*x)).collect();
        let words = spread(&lines.iter().map(|at| at + 3.0).collect::<Vec<_>>(), WIDTH - RIGHT - WORD);
        for ((line, at), (_, word)) in lines.iter().zip(words).zip(places) {
            self.push(format_args!(
                "<line class='divider' x1='{line:.1}' x2='{line:.1}' y1='{TOP}' y2='{:.1}'/>\
                 <text class='small' transform='translate({at:.1} {:.1}) rotate(90)'>{}</text>",
                HEIGHT - BOTTOM,
                TOP + 2.0,
                escape(word)
            ));
        }
    }

    /// A dashed line across, at a limit.
    pub(super) fn limit(&mut self, y: f64, color: &str) {
        let at = self.at_y(y);
        self.push(format_args!(
            "<line x1='{LEFT}' x2='{:.1}' y1='{at:.1}' y2='{at:.1}' stroke='{color}' stroke-dasharray='5 4'/>",
            WIDTH - RIGHT
        ));
    }

    /// The finished figure.
    pub(super) fn finish(self, caption: &str) -> String {
        let mut out = format!(
            "<figure><svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{}'>{}<rect class='frame' x='{LEFT}' \
             y='{TOP}' width='{}' height='{}'/></svg><figcaption>",
            escape(caption),
            self.body,
            WIDTH - LEFT - RIGHT,
            HEIGHT - TOP - BOTTOM
        );
        for (name, color) in &self.legend {
            out.push_str(&format!(
                "<span class='key'><i style='background:{color}'></i>{}</span>",
                escape(name)
            ));
        }
        out.push_str(&format!("<p>{}</p></figcaption></figure>", escape(caption)));
        out
    }
}

/// Width of a word that stands upright.
const WORD: f64 = 10.0;

/// Ascending places moved apart to at least [`WORD`], none beyond `last` as long as they fit.
fn spread(places: &[f64], last: f64) -> Vec<f64> {
    let mut spread: Vec<f64> = Vec::with_capacity(places.len());
    for place in places {
        spread.push(spread.last().map_or(*place, |before| place.max(before + WORD)));
    }
    let mut limit = last;
    for place in spread.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - WORD;
    }
    spread
}

/// Text inside HTML or an attribute.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_hold_the_values() {
        assert!(matches!(Scale::decades([2e-7, 0.3].into_iter(), -14), Scale::Decades(-7, 0)));
        assert!(matches!(Scale::decades([0.0].into_iter(), -14), Scale::Decades(-14, -13)));
        assert!(matches!(Scale::decades([1e-30, 1.0].into_iter(), -14), Scale::Decades(-14, 0)));
        assert_eq!(Scale::Decades(-4, 0).place(1e-2), 0.5);
        assert_eq!(Scale::Decades(-4, 0).place(0.0), 0.0);
        assert_eq!(Scale::Linear(0.0, 1.0).place(f64::NAN), 0.0);
    }

    #[test]
    fn linear_ticks_are_round() {
        let labels: Vec<String> =
            Scale::Linear(0.0, 1.0).ticks().into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
    }

    #[test]
    fn words_do_not_cover_one_another() {
        assert_eq!(spread(&[0.0, 2.0, 50.0], 100.0), [0.0, 10.0, 50.0]);
        assert_eq!(spread(&[0.0, 95.0, 98.0], 100.0), [0.0, 90.0, 100.0]);
        assert_eq!(spread(&[], 100.0), [0.0; 0]);
    }

    #[test]
    fn names_cannot_break_out() {
        let mut plot = Plot::new(Scale::Linear(0.0, 1.0), Scale::Linear(0.0, 1.0), "x", "y");
        plot.dot(0.5, 0.5, 2.0, "red", "</title><script>'\"");
        let text = plot.finish("a < b");
        assert!(!text.contains("<script>") && text.contains("&lt;script&gt;") && text.contains("a &lt; b"));
    }
}
