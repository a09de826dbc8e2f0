//! Rotary angles of a step's rows.

use palimpsest_models::config::{ModelConfig, Rotary};

/// What the layers of a model turn by: a few tables, and which layer has which.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryTables {
    tables: Vec<Rotary>,
    of_layer: Vec<usize>,
}

impl RotaryTables {
    /// Those of a model.
    pub fn of(config: &ModelConfig) -> Self {
        let mut tables: Vec<Rotary> = Vec::new();
        let mut index = |layer| {
            let rotary = config.rotary_of(layer);
            let known = tables.iter().position(|table| *table == rotary);
            known.unwrap_or_else(|| {
                tables.push(rotary);
                tables.len() - 1
            })
        };
        let of_layer = (0..config.layers).map(&mut index).collect();
        Self { tables, of_layer }
    }

    /// One for all layers.
    pub fn alike(rotary: Rotary, layers: usize) -> Self {
        Self {
            tables: vec![rotary],
            of_layer: vec![0; layers],
        }
    }

    /// All tables.
    pub fn tables(&self) -> &[Rotary] {
        &self.tables
    }

    /// Which of the tables a layer has.
    pub fn index(&self, layer: usize) -> usize {
        self.of_layer[layer]
    }

    /// What a layer turns by.
    pub fn of_layer(&self, layer: usize) -> &Rotary {
        &self.tables[self.of_layer[layer]]
    }
}

/// Cosines and sines of rotary angles, times the length that rotated pairs get.
#[derive(Debug, Clone, Default)]
pub struct Angles {
    /// `[T, D/2]`.
    pub cos: Vec<f32>,
    /// `[T, D/2]`.
    pub sin: Vec<f32>,
    /// The lengths `[D/2]`: 1 but where rotary scaling says otherwise.
    pub scale: Vec<f32>,
}

impl Angles {
    /// Computes the angle `position * inv_freq` of every position, in f32 as the reference
    /// implementations have it, and puts its cosine and sine here.
    pub fn fill(&mut self, positions: impl Iterator<Item = u64>, rotary: &Rotary) {
        self.cos.clear();
        self.sin.clear();
        self.scale.clone_from(&rotary.scale);
        for position in positions {
            for (freq, scale) in rotary.inv_freq.iter().zip(&rotary.scale) {
                let (sin, cos) = f64::from(position as f32 * freq).sin_cos();
                self.cos.push(cos as f32 * scale);
                self.sin.push(sin as f32 * scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_laid_out_by_row() {
        let mut angles = Angles::default();
        let rotary = Rotary {
            inv_freq: vec![1.0, 0.5],
            scale: vec![1.0, 2.0],
        };
        angles.fill([0, 3].into_iter(), &rotary);
        assert_eq!(
            angles.cos,
            [1.0, 2.0, 3f64.cos() as f32, 2.0 * 1.5f64.cos() as f32]
        );
        assert_eq!(
            angles.sin,
            [0.0, 0.0, 3f64.sin() as f32, 2.0 * 1.5f64.sin() as f32]
        );
    }
}
