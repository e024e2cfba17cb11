//! Modification times: as PAX writes them, as a ztoc writes them, and as two numbers in between.
//!
//! A ztoc holds RFC 3339 text in UTC with the zeros at the end of the fraction left out. The text is empty when the year
//! has more than four digits or is negative. Reading accepts any zone.

/// A moment: seconds since 1970, rounded down, and the nanoseconds after them. Half a second before 1970 is
/// second -1 and nanosecond 500 000 000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MTime {
    /// Seconds since the beginning of 1970 in UTC.
    pub seconds: i64,
    /// 0 to 999 999 999.
    pub nanoseconds: u32,
}

const DAY: i64 = 86400;
/// Seconds from the year 0 to 1970, and to 10000.
const YEAR_0: i64 = -62_167_219_200;
const YEAR_10000: i64 = 253_402_300_800;

impl MTime {
    /// The text of a ztoc.
    pub(crate) fn to_text(self) -> String {
        if !(YEAR_0..YEAR_10000).contains(&self.seconds) {
            return String::new();
        }
        let (year, month, day) = civil(self.seconds.div_euclid(DAY));
        let second = self.seconds.rem_euclid(DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        if self.nanoseconds != 0 {
            text.push_str(format!(".{:09}", self.nanoseconds).trim_end_matches('0'));
        }
        text.push('Z');
        text
    }

    /// Reads what [`MTime::to_text`] writes, in any zone; nothing when it is not exactly that.
    pub(crate) fn from_text(text: &[u8]) -> Option<MTime> {
        let (date_time, mut rest) = text.split_at_checked(19)?;
        for (at, mark) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')] {
            if date_time[at] != mark {
                return None;
            }
        }
        let year = digits(&date_time[..4], 0, 9999)?;
        let month = digits(&date_time[5..7], 1, 12)?;
        let day = digits(&date_time[8..10], 1, days_in(year, month))?;
        let hour = digits(&date_time[11..13], 0, 23)?;
        let minute = digits(&date_time[14..16], 0, 59)?;
        let second = digits(&date_time[17..], 0, 59)?;
        let mut nanoseconds = 0;
        if let [b'.', fraction @ ..] = rest {
            let len = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            nanoseconds = nanoseconds_of(&fraction[..len])?;
            rest = &fraction[len..];
        }
        let zone = match rest {
            b"Z" => 0,
            [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
                let zone = digits(&[*h1, *h2], 0, 23)? * 3600 + digits(&[*m1, *m2], 0, 59)? * 60;
                if *sign == b'-' { -zone } else { zone }
            }
            _ => return None,
        };
        let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second - zone;
        Some(MTime { seconds, nanoseconds })
    }

    /// Reads a PAX time: decimal seconds, perhaps negative, perhaps with a fraction.
    pub(crate) fn from_pax(text: &[u8]) -> Option<MTime> {
        let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
            Some(point) => (&text[..point], &text[point + 1..]),
            None => (text, &text[text.len()..]),
        };
        let seconds = super::record::integer(whole)?;
        let nanoseconds = if fraction.is_empty() { 0 } else { nanoseconds_of(fraction)? };
        if whole.first() == Some(&b'-') && nanoseconds > 0 {
            // the fraction counts away from zero
            return Some(MTime {
                seconds: seconds.checked_sub(1)?,
                nanoseconds: 1_000_000_000 - nanoseconds,
            });
        }
        Some(MTime { seconds, nanoseconds })
    }
}

/// A fraction of a second; digits after the ninth are dropped.
fn nanoseconds_of(fraction: &[u8]) -> Option<u32> {
    if fraction.is_empty() || !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let padded = fraction.iter().copied().chain(std::iter::repeat(b'0'));
    Some(padded.take(9).fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')))
}

fn digits(text: &[u8], least: i64, most: i64) -> Option<i64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = text.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    (least..=most).contains(&value).then_some(value)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days since 1970 of a date. Years are counted from March, so that the leap day comes last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    // 719468 days from March of the year 0 to 1970
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The date so many days after the beginning of 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanoseconds: u32) -> MTime {
        MTime { seconds, nanoseconds }
    }

    #[test]
    fn text_there_and_back() {
        for (time, text) in [
            (at(0, 0), "1970-01-01T00:00:00Z"),
            (at(-1, 0), "1969-12-31T23:59:59Z"),
            (at(-1, 500_000_000), "1969-12-31T23:59:59.5Z"),
            (at(1_700_000_000, 123_456_789), "2023-11-14T22:13:20.123456789Z"),
            (at(951_782_400, 10), "2000-02-29T00:00:00.00000001Z"),
            (at(YEAR_0, 0), "0000-01-01T00:00:00Z"),
            (at(YEAR_10000 - 1, 0), "9999-12-31T23:59:59Z"),
            (at(-62_135_596_800, 0), "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(time.to_text(), text);
            assert_eq!(MTime::from_text(text.as_bytes()), Some(time));
        }
        for year in 0..10000 {
            for (month, day) in [(1, 1), (2, 28), (3, 1), (12, 31)] {
                assert_eq!(civil(days(year, month, day)), (year, month, day));
            }
        }
    }

    #[test]
    fn years_of_five_digits_have_no_text() {
        for seconds in [YEAR_0 - 1, YEAR_10000, i64::MIN, i64::MAX] {
            assert_eq!(at(seconds, 0).to_text(), "");
        }
    }

    #[test]
    fn text_of_others() {
        for (text, time) in [
            ("1970-01-01T01:00:00+01:00", Some(at(0, 0))),
            ("1969-12-31T23:30:00-00:30", Some(at(0, 0))),
            ("1970-01-01T00:00:00.1234567899Z", Some(at(0, 123_456_789))),
            ("", None),
            ("1970-01-01T00:00:00", None),
            ("1970-01-01T00:00:00.Z", None),
            ("1970-01-01 00:00:00Z", None),
            ("1970-02-29T00:00:00Z", None),
            ("1970-01-01T24:00:00Z", None),
            ("1970-01-01T00:00:00+24:00", None),
            ("1970-01-01T00:00:00Zx", None),
            ("+970-01-01T00:00:00Z", None),
        ] {
            assert_eq!(MTime::from_text(text.as_bytes()), time, "{text}");
        }
    }

    #[test]
    fn pax_times() {
        for (text, time) in [
            ("1350244992.023960108", Some(at(1_350_244_992, 23_960_108))),
            ("5", Some(at(5, 0))),
            ("5.", Some(at(5, 0))),
            ("+5.25", Some(at(5, 250_000_000))),
            ("-0.5", Some(at(-1, 500_000_000))),
            ("-1.5", Some(at(-2, 500_000_000))),
            ("-1", Some(at(-1, 0))),
            ("1.1234567899", Some(at(1, 123_456_789))),
            ("", None),
            (".5", None),
            ("1.5x", None),
            ("1.-5", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(MTime::from_pax(text.as_bytes()), time, "{text}");
        }
    }
}
