//! One scan: the values of some components, in blocks of 8 × 8.

use super::bits::{Bits, Stop, Table};

/// A colour component of the image.
pub(super) struct Component {
    id: u8,
    /// Blocks in an MCU, along each side.
    per_mcu: (usize, usize),
    /// Blocks in a scan of this component alone, along each side.
    own: (usize, usize),
    /// Blocks in a row of all MCUs.
    stride: usize,
    /// Which of the 64 values of each block are not zero so far, a bit each; progressive images need to
    /// know.
    nonzero: Vec<u64>,
    /// Whether a scan has brought its DC values.
    pub(super) seen: bool,
}

impl Component {
    pub(super) fn new(
        id: u8,
        per_mcu: (usize, usize),
        own: (usize, usize),
        mcus: (usize, usize),
        progressive: bool,
    ) -> Self {
        let stride = mcus.0 * per_mcu.0;
        let blocks = if progressive { stride * mcus.1 * per_mcu.1 } else { 0 };
        Component { id, per_mcu, own, stride, nonzero: vec![0; blocks], seen: false }
    }
}

/// A scan that is about to be read.
pub(super) struct Scan<'t> {
    /// Index of each component with its tables, of DC and of AC values.
    parts: Vec<(usize, Option<&'t Table>, Option<&'t Table>)>,
    coding: Coding,
}

/// How the values of a block are coded.
#[derive(Clone, Copy)]
enum Coding {
    Sequential,
    /// DC values of a progressive image.
    First,
    /// One more bit of each DC value.
    Refined,
    /// AC values from the first to the second.
    AcFirst(usize, usize),
    /// One more bit of these.
    AcRefined(usize, usize),
}

impl<'t> Scan<'t> {
    /// From its header; `None` if it makes no sense.
    pub(super) fn parse(
        header: &[u8],
        components: &[Component],
        tables: &'t [[Option<Table>; 4]; 2],
        progressive: bool,
    ) -> Option<Self> {
        let (&count, rest) = header.split_first()?;
        let (listed, rest) = rest.split_at_checked(2 * usize::from(count))?;
        let mut parts = Vec::new();
        for &[id, places] in listed.as_chunks::<2>().0 {
            let index = components.iter().position(|component| component.id == id)?;
            let table = |kind: usize, place: u8| tables[kind].get(usize::from(place))?.as_ref();
            parts.push((index, table(0, places >> 4), table(1, places & 15)));
        }
        let &[first, last, bits, ..] = rest else { return None };
        let (first, last, is_refined) = (usize::from(first), usize::from(last), bits >> 4 > 0);
        let coding = match (progressive, first, is_refined) {
            (false, ..) => Coding::Sequential,
            (true, 0, false) => Coding::First,
            (true, 0, true) => Coding::Refined,
            (true, _, false) => Coding::AcFirst(first, last),
            (true, _, true) => Coding::AcRefined(first, last),
        };
        let needs = |(_, dc, ac): &(usize, Option<&Table>, Option<&Table>)| match coding {
            Coding::Sequential => dc.is_some() && ac.is_some(),
            Coding::First => dc.is_some(),
            Coding::Refined => true,
            Coding::AcFirst(..) | Coding::AcRefined(..) => ac.is_some(),
        };
        let alone = !matches!(coding, Coding::AcFirst(..) | Coding::AcRefined(..))
            || parts.len() == 1 && first <= last && last < 64;
        (!parts.is_empty() && parts.iter().all(needs) && alone).then_some(Scan { parts, coding })
    }

    /// Reads every value and returns the length of the data.
    ///
    /// # Errors
    /// Why, and where.
    pub(super) fn read(
        &self,
        data: &[u8],
        components: &mut [Component],
        mcus: (usize, usize),
        interval: usize,
    ) -> Result<usize, (Stop, usize)> {
        let mut bits = Bits::new(data);
        match self.read_with(&mut bits, components, mcus, interval) {
            Ok(()) => Ok(bits.position()),
            Err(stop) => Err((stop, bits.position())),
        }
    }

    fn read_with(
        &self,
        bits: &mut Bits<'_>,
        components: &mut [Component],
        mcus: (usize, usize),
        interval: usize,
    ) -> Result<(), Stop> {
        if !matches!(self.coding, Coding::AcFirst(..) | Coding::AcRefined(..)) {
            self.parts.iter().for_each(|&(index, ..)| components[index].seen = true);
        }
        // Further blocks of a progressive scan that get nothing.
        let mut run = 0;
        let alone = self.parts.len() == 1;
        let (across, down) = if alone { components[self.parts[0].0].own } else { mcus };
        let mut restarts = 0..;
        for mcu in 0..across * down {
            if interval > 0 && mcu > 0 && mcu.is_multiple_of(interval) {
                let number: u64 = restarts.next().unwrap_or_default();
                bits.restart((number % 8) as u8)?;
                run = 0;
            }
            let (x, y) = (mcu % across, mcu / across);
            for &(index, dc, ac) in &self.parts {
                let component = &mut components[index];
                let (h, v) = if alone { (1, 1) } else { component.per_mcu };
                for place in 0..h * v {
                    let block = (y * v + place / h) * component.stride + x * h + place % h;
                    let nonzero = component.nonzero.get_mut(block);
                    self.block(bits, (dc, ac), nonzero, &mut run)?;
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn block(
        &self,
        bits: &mut Bits<'_>,
        tables: (Option<&Table>, Option<&Table>),
        nonzero: Option<&mut u64>,
        run: &mut u32,
    ) -> Result<(), Stop> {
        match (self.coding, tables, nonzero) {
            (Coding::Sequential, (Some(dc), Some(ac)), _) => {
                read_dc(bits, dc)?;
                read_ac(bits, ac)
            }
            (Coding::First, (Some(dc), _), _) => read_dc(bits, dc),
            (Coding::Refined, ..) => bits.take(1).map(drop),
            (Coding::AcFirst(first, last), (_, Some(ac)), Some(nonzero)) => {
                read_first(bits, ac, (first, last), nonzero, run)
            }
            (Coding::AcRefined(first, last), (_, Some(ac)), Some(nonzero)) => {
                read_refined(bits, ac, (first, last), nonzero, run)
            }
            // `parse` lets no scan without its tables pass.
            _ => Err(Stop::Value),
        }
    }
}

fn read_dc(bits: &mut Bits<'_>, table: &Table) -> Result<(), Stop> {
    match bits.code(table)? {
        size @ 0..=15 => bits.take(u32::from(size)).map(drop),
        _ => Err(Stop::Value),
    }
}

/// AC values of a sequential block: runs of zeros, each before a value. Source: T.81, F.2.2.2.
fn read_ac(bits: &mut Bits<'_>, table: &Table) -> Result<(), Stop> {
    let mut k = 1;
    while k < 64 {
        let code = bits.code(table)?;
        let (zeros, size) = (usize::from(code >> 4), u32::from(code & 15));
        match (zeros, size) {
            (15, 0) => k += 16,
            (_, 0) => return Ok(()),
            _ => {
                k += zeros + 1;
                if k > 64 {
                    return Err(Stop::Value);
                }
                bits.take(size)?;
            }
        }
    }
    Ok(())
}

/// AC values of a progressive block, first pass. Source: T.81, G.1.2.2.
fn read_first(
    bits: &mut Bits<'_>,
    table: &Table,
    (first, last): (usize, usize),
    nonzero: &mut u64,
    run: &mut u32,
) -> Result<(), Stop> {
    if *run > 0 {
        *run -= 1;
        return Ok(());
    }
    let mut k = first;
    while k <= last {
        let code = bits.code(table)?;
        let (zeros, size) = (usize::from(code >> 4), u32::from(code & 15));
        match (zeros, size) {
            (15, 0) => k += 16,
            (exponent, 0) => {
                *run = (1 << exponent) - 1 + bits.take(exponent as u32)?;
                return Ok(());
            }
            _ => {
                k += zeros;
                if k > last {
                    return Err(Stop::Value);
                }
                bits.take(size)?;
                *nonzero |= 1 << k;
                k += 1;
            }
        }
    }
    Ok(())
}

/// AC values of a progressive block, a later pass: a bit more of each value that is not zero, and new values
/// among the others. Source: T.81, G.1.2.3.
fn read_refined(
    bits: &mut Bits<'_>,
    table: &Table,
    (first, last): (usize, usize),
    nonzero: &mut u64,
    run: &mut u32,
) -> Result<(), Stop> {
    let mut k = first;
    while *run == 0 && k <= last {
        let code = bits.code(table)?;
        let (mut zeros, size) = (usize::from(code >> 4), code & 15);
        if size == 0 && zeros < 15 {
            *run = (1 << zeros) + bits.take(zeros as u32)?;
            break;
        }
        if size > 1 {
            return Err(Stop::Value);
        }
        bits.take(u32::from(size))?;
        while k <= last {
            if *nonzero >> k & 1 == 1 {
                bits.take(1)?;
            } else if zeros == 0 {
                break;
            } else {
                zeros -= 1;
            }
            k += 1;
        }
        if size == 1 {
            if k > last {
                return Err(Stop::Value);
            }
            *nonzero |= 1 << k;
        }
        k += 1;
    }
    if *run > 0 {
        for k in k..=last {
            if *nonzero >> k & 1 == 1 {
                bits.take(1)?;
            }
        }
        *run -= 1;
    }
    Ok(())
}
