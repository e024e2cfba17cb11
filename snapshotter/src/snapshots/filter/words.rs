//! The words of a filter, one after the other: fields, operators, values; quotations are undone. Pure.

/// What is left of a filter.
pub(super) struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// The next letter, a space, too.
    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Takes this letter, if it is the next one.
    pub(super) fn takes(&mut self, letter: char) -> bool {
        let after = self.rest.strip_prefix(letter);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    pub(super) fn field(&mut self) -> Result<String, String> {
        self.rest = self.rest.trim_start();
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        let found = self.take_while(|letter| letter == '_' || letter.is_ascii_alphanumeric());
        if found.is_empty() { Err("a field is missing".to_owned()) } else { Ok(found.to_owned()) }
    }

    pub(super) fn operator(&mut self) -> Result<&'a str, String> {
        self.rest = self.rest.trim_start();
        let found = self.take_while(|letter| matches!(letter, '=' | '!' | '~'));
        if found.is_empty() { Err("an operator is missing".to_owned()) } else { Ok(found) }
    }

    pub(super) fn value(&mut self) -> Result<String, String> {
        self.value_in(&['"'])
    }

    /// The value of a regular expression: its quotes need not be those of everything else.
    pub(super) fn expression(&mut self) -> Result<String, String> {
        self.value_in(&['"', '/', '|'])
    }

    fn value_in(&mut self, quotes: &[char]) -> Result<String, String> {
        self.rest = self.rest.trim_start();
        match self.peek() {
            None => Err("a value is missing".to_owned()),
            Some(quote) if quotes.contains(&quote) => self.quoted(quote),
            Some(letter @ ('/' | '|')) => Err(format!("{letter:?} quotes regular expressions only")),
            Some(letter @ (',' | '.' | '=' | '!' | '~')) => {
                Err(format!("a value does not begin with {letter:?}"))
            }
            Some(_) => {
                let found = self
                    .take_while(|letter| letter != ',' && !letter.is_whitespace() && !letter.is_control());
                if found.is_empty() { Err("a value is missing".to_owned()) } else { Ok(found.to_owned()) }
            }
        }
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|letter| !wanted(letter)).unwrap_or(self.rest.len());
        let (found, rest) = self.rest.split_at(end);
        self.rest = rest;
        found
    }

    /// A quotation with the escapes of Go's strings.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut letters = self.rest.chars();
        letters.next(); // the quote itself
        let mut bytes = Vec::new();
        loop {
            let letter = match letters.next() {
                None | Some('\n' | '\0') => return Err("a quotation is not closed".to_owned()),
                Some(letter) if letter == quote => break,
                Some('\\') => {
                    match escaped(&mut letters, quote).ok_or("a quotation has an unknown escape")? {
                        Escaped::Byte(byte) => {
                            bytes.push(byte);
                            continue;
                        }
                        Escaped::Letter(letter) => letter,
                    }
                }
                Some(letter) => letter,
            };
            bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        }
        self.rest = letters.as_str();
        // Names and labels come as text: what is none equals none of them, and is refused rather than changed.
        String::from_utf8(bytes).map_err(|_| "a quotation is not UTF-8".to_owned())
    }
}

enum Escaped {
    Byte(u8),
    Letter(char),
}

fn escaped(letters: &mut std::str::Chars<'_>, quote: char) -> Option<Escaped> {
    let number = |letters: &mut std::str::Chars<'_>, digits: usize, base: u32, first: u32| {
        (0..digits).try_fold(first, |number, _| Some(number * base + letters.next()?.to_digit(base)?))
    };
    let byte = |number: u32| u8::try_from(number).ok().map(Escaped::Byte);
    match letters.next()? {
        'a' => Some(Escaped::Byte(7)),
        'b' => Some(Escaped::Byte(8)),
        'f' => Some(Escaped::Byte(12)),
        'n' => Some(Escaped::Byte(b'\n')),
        'r' => Some(Escaped::Byte(b'\r')),
        't' => Some(Escaped::Byte(b'\t')),
        'v' => Some(Escaped::Byte(11)),
        '\\' => Some(Escaped::Byte(b'\\')),
        'x' => byte(number(letters, 2, 16, 0)?),
        'u' => char::from_u32(number(letters, 4, 16, 0)?).map(Escaped::Letter),
        'U' => {
            // Eight digits may be more than a number holds.
            let high = number(letters, 4, 16, 0).filter(|high| *high <= 0x10)?;
            char::from_u32(number(letters, 4, 16, high)?).map(Escaped::Letter)
        }
        digit @ '0'..='7' => byte(number(letters, 2, 8, digit.to_digit(8)?)?),
        letter if letter == quote => Some(Escaped::Letter(letter)),
        _ => None,
    }
}
