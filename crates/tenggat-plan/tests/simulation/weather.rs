//! What disturbs a machine: noise, heavy tails, drift, neighbours, stalls.

use crate::random::Random;

/// A disturbance of a whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Quiet,
    Gaussian,
    HeavyTails,
    Drift,
    Neighbour,
    Stalls,
    SlowBucket,
    Everything,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Quiet,
        Self::Gaussian,
        Self::HeavyTails,
        Self::Drift,
        Self::Neighbour,
        Self::Stalls,
        Self::SlowBucket,
        Self::Everything,
    ];

    fn is(self, kind: Self) -> bool {
        self == kind || self == Self::Everything
    }
}

/// A pause of the whole process.
#[derive(Debug, Clone, Copy)]
pub struct Stall {
    pub began_s: f64,
    pub length_s: f64,
    /// Work of the interrupted operation that was still to be done.
    pub unfinished_s: f64,
}

/// The disturbances of one run, as functions of the clock.
pub struct Weather {
    gaussian: f64,
    tails: f64,
    drift: Vec<f64>,
    drift_every_s: f64,
    neighbour: f64,
    neighbour_stay_s: f64,
    neighbour_until_s: f64,
    neighbour_here: bool,
    stalls_due_s: Vec<(f64, f64)>,
    pub stalls: Vec<Stall>,
}

impl Weather {
    pub fn new(kind: Kind, budget_s: f64, random: &mut Random) -> Self {
        let gaussian = match kind {
            Kind::Quiet => 0.01,
            Kind::Gaussian => random.between(0.02, 0.2),
            _ => random.between(0.01, 0.06),
        };
        let tails = if kind.is(Kind::HeavyTails) { random.between(0.03, 0.15) } else { 0.0 };
        // A slow course between half and three times the speed, through points that lie a quarter of the run
        // apart.
        let drift = if kind.is(Kind::Drift) {
            (0..6).map(|_| random.log_between(0.5, 3.0)).collect()
        } else {
            vec![1.0; 6]
        };
        let neighbour = if kind.is(Kind::Neighbour) { random.between(1.2, 2.0) } else { 1.0 };
        let mut stalls_due_s = Vec::new();
        if kind.is(Kind::Stalls) {
            let gap_s = budget_s / random.between(0.5, 6.0);
            let mut at_s = random.waiting(gap_s);
            while at_s < budget_s {
                stalls_due_s.push((at_s, random.log_between(0.5, 60.0)));
                at_s += random.waiting(gap_s);
            }
            stalls_due_s.reverse();
        }
        Self {
            gaussian,
            tails,
            drift,
            drift_every_s: budget_s / 4.0,
            neighbour,
            neighbour_stay_s: random.log_between(5.0, 300.0),
            neighbour_until_s: 0.0,
            neighbour_here: false,
            stalls_due_s,
            stalls: Vec::new(),
        }
    }

    /// Speed factor at a moment.
    fn slowness(&mut self, now_s: f64, random: &mut Random) -> f64 {
        let place = (now_s / self.drift_every_s).clamp(0.0, 4.999);
        let (index, part) = (place as usize, place.fract());
        let drift = self.drift[index] * (1.0 - part) + self.drift[index + 1] * part;
        while self.neighbour > 1.0 && self.neighbour_until_s < now_s {
            self.neighbour_here = !self.neighbour_here;
            self.neighbour_until_s += random.waiting(self.neighbour_stay_s).max(0.1);
        }
        if self.neighbour_here { drift * self.neighbour } else { drift }
    }

    /// Duration of one step whose undisturbed time is `nominal_s`.
    pub fn step(&mut self, now_s: f64, nominal_s: f64, random: &mut Random) -> f64 {
        let mut noise = 1.0 + self.gaussian * random.normal();
        if self.tails > 0.0 {
            // Student's t with three degrees of freedom: mean absolute value 1.1, one in a thousand beyond
            // 10.
            let squares = (0..3).map(|_| random.normal().powi(2)).sum::<f64>() / 3.0;
            noise += self.tails * (random.normal() / squares.sqrt()).abs();
        }
        let worked_s = nominal_s * self.slowness(now_s, random) * noise.clamp(0.5, 4.0);
        self.with_stalls(now_s, worked_s)
    }

    /// Duration of a longer piece of work on the device, in which the noise of the single steps has averaged
    /// out.
    pub fn work(&mut self, now_s: f64, nominal_s: f64, random: &mut Random) -> f64 {
        let noise = 1.0 + 0.03 * random.normal();
        let worked_s = nominal_s * self.slowness(now_s, random) * noise.clamp(0.8, 1.3);
        self.with_stalls(now_s, worked_s)
    }

    /// Duration of writing a file.
    pub fn write(&mut self, now_s: f64, nominal_s: f64, random: &mut Random) -> f64 {
        let noise = if self.tails > 0.0 { 0.2 } else { 0.1 };
        let worked_s = nominal_s * (noise * random.normal()).exp();
        self.with_stalls(now_s, worked_s)
    }

    fn with_stalls(&mut self, now_s: f64, worked_s: f64) -> f64 {
        let mut took_s = worked_s;
        while let Some(&(due_s, length_s)) = self.stalls_due_s.last() {
            if due_s >= now_s + took_s {
                break;
            }
            self.stalls_due_s.pop();
            let began_s = due_s.max(now_s);
            self.stalls.push(Stall { began_s, length_s, unfinished_s: now_s + took_s - began_s });
            took_s += length_s;
        }
        took_s
    }
}
