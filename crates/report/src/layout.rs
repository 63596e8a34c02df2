//! Where things stand: columns from left to right by what needs what, few crossings, straight lines where possible.
//!
//! The layered drawing of Sugiyama: ranks by the longest way, long edges cut into one piece a rank, orders by the
//! positions of neighbours, heights by regression that keeps the order.

use std::collections::BTreeMap;

/// What is placed.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) width: f64,
    pub(crate) height: f64,
    /// Where edges leave it, from its top.
    pub(crate) out: f64,
}

/// An edge between shapes.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Where it arrives, from the top.
    pub(crate) at: f64,
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The upper left corner of each shape.
    pub(crate) places: Vec<(f64, f64)>,
    /// The points each edge goes through between its ends: left and right border of the columns it crosses.
    pub(crate) bends: Vec<Vec<(f64, f64)>>,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// Between two shapes of a column.
const GAP: f64 = 22.0;
/// Between an edge that passes and its neighbours.
const LANE_GAP: f64 = 10.0;
/// Between two columns.
const COLUMN_GAP: f64 = 76.0;
/// With more pieces of long edges than that, edges are drawn from end to end.
const MOST_PIECES: usize = 6000;
/// How often orders are improved.
const SWEEPS: usize = 14;
/// With more edges than that crossings are not counted.
const MOST_COUNTED: usize = 3000;

/// Places shapes. Edges that close a circle are drawn, but place nothing.
pub(crate) fn layout(shapes: &[Shape], lines: &[Line]) -> Layout {
    let ranks = ranks(shapes.len(), lines);
    let mut grid = Grid::new(shapes, lines, &ranks);
    grid.order();
    grid.place(shapes, lines)
}

/// Returns the column of each shape: the longest way to it. What has no inputs stands just before its first user.
fn ranks(count: usize, lines: &[Line]) -> Vec<usize> {
    let mut users = vec![Vec::new(); count];
    let mut inputs = vec![0_usize; count];
    for line in lines {
        users[line.from].push(line.to);
        inputs[line.to] += 1;
    }
    let has_inputs: Vec<bool> = inputs.iter().map(|count| *count > 0).collect();
    let mut ranks = vec![0_usize; count];
    let mut done = vec![false; count];
    let mut open: std::collections::VecDeque<usize> =
        (0..count).filter(|node| inputs[*node] == 0).collect();
    let mut next = 0;
    loop {
        let node = match open.pop_front() {
            Some(node) => node,
            // In a circle: the first that is left begins.
            None => match (next..count).find(|node| !done[*node]) {
                Some(node) => {
                    next = node;
                    node
                }
                None => break,
            },
        };
        if std::mem::replace(&mut done[node], true) {
            continue;
        }
        for user in &users[node] {
            if done[*user] {
                continue;
            }
            ranks[*user] = ranks[*user].max(ranks[node] + 1);
            inputs[*user] -= 1;
            if inputs[*user] == 0 {
                open.push_back(*user);
            }
        }
    }
    for node in (0..count).filter(|node| !has_inputs[*node]) {
        let first = users[node].iter().map(|user| ranks[*user]).min();
        ranks[node] = first.map_or(0, |first| first.saturating_sub(1));
    }
    ranks
}

/// Shapes and pieces of long edges in columns.
struct Grid {
    /// Cells in each column, from above.
    columns: Vec<Vec<usize>>,
    cells: Vec<Cell>,
    /// Neighbours in the column before and in the one behind.
    before: Vec<Vec<Link>>,
    behind: Vec<Vec<Link>>,
    /// The cells each edge goes through.
    passes: Vec<Vec<usize>>,
    count: usize,
}

struct Cell {
    rank: usize,
    height: f64,
    /// A piece of an edge.
    is_lane: bool,
}

#[derive(Clone, Copy)]
struct Link {
    cell: usize,
    /// Where the edge touches this cell and the other, from their tops.
    here: f64,
    there: f64,
}

impl Grid {
    fn new(shapes: &[Shape], lines: &[Line], ranks: &[usize]) -> Self {
        let cells = shapes.iter().zip(ranks).map(|(shape, rank)| Cell {
            rank: *rank,
            height: shape.height,
            is_lane: false,
        });
        let mut grid = Self {
            columns: Vec::new(),
            cells: cells.collect(),
            before: vec![Vec::new(); shapes.len()],
            behind: vec![Vec::new(); shapes.len()],
            passes: vec![Vec::new(); lines.len()],
            count: shapes.len(),
        };
        let span = |line: &Line| ranks[line.to].saturating_sub(ranks[line.from]);
        let pieces: usize = lines.iter().map(|line| span(line).saturating_sub(1)).sum();
        // Edges from one shape to several rows of another share their way.
        let mut known: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (number, line) in lines.iter().enumerate() {
            if span(line) == 0 {
                continue;
            }
            let mut last = (line.from, shapes[line.from].out);
            if pieces <= MOST_PIECES {
                for rank in ranks[line.from] + 1..ranks[line.to] {
                    // All edges out of a shape run together as far as they can.
                    let cell = *known.entry((line.from, rank)).or_insert_with(|| {
                        grid.cells.push(Cell {
                            rank,
                            height: 0.0,
                            is_lane: true,
                        });
                        grid.before.push(Vec::new());
                        grid.behind.push(Vec::new());
                        grid.cells.len() - 1
                    });
                    grid.passes[number].push(cell);
                    let linked = grid.before[cell].iter().any(|link| link.cell == last.0);
                    if !linked {
                        grid.link(last, (cell, 0.0));
                    }
                    last = (cell, 0.0);
                }
            }
            if span(line) == 1 || pieces <= MOST_PIECES {
                grid.link(last, (line.to, line.at));
            }
        }
        let last = grid.cells.iter().map(|cell| cell.rank).max().unwrap_or(0);
        grid.columns = vec![Vec::new(); last + 1];
        for (number, cell) in grid.cells.iter().enumerate() {
            grid.columns[cell.rank].push(number);
        }
        grid
    }

    fn link(&mut self, from: (usize, f64), to: (usize, f64)) {
        self.behind[from.0].push(Link {
            cell: to.0,
            here: from.1,
            there: to.1,
        });
        self.before[to.0].push(Link {
            cell: from.0,
            here: to.1,
            there: from.1,
        });
    }

    /// Orders the columns so that few edges cross.
    fn order(&mut self) {
        let edges: usize = self.behind.iter().map(Vec::len).sum();
        let counted = edges <= MOST_COUNTED;
        let mut best = self.columns.clone();
        let mut fewest = if counted {
            self.crossings()
        } else {
            usize::MAX
        };
        // Of sweeps that cannot be compared the first two help most.
        let sweeps = if counted { SWEEPS } else { 2 };
        let mut position = vec![0.0; self.cells.len()];
        for sweep in 0..sweeps {
            let forward = sweep % 2 == 0;
            let count = self.columns.len();
            for step in 0..count {
                let column = if forward { step } else { count - 1 - step };
                self.sort_column(column, forward, &mut position);
            }
            let crossings = if counted { self.crossings() } else { 0 };
            if crossings < fewest || !counted {
                fewest = crossings;
                best.clone_from(&self.columns);
            }
        }
        self.columns = best;
    }

    /// Sorts a column by where the neighbours on one side are; `position` has room for the place of every cell.
    fn sort_column(&mut self, column: usize, forward: bool, position: &mut [f64]) {
        let neighbours = match forward {
            true => column.checked_sub(1),
            false => Some(column + 1).filter(|next| *next < self.columns.len()),
        };
        let Some(neighbours) = neighbours else { return };
        for (place, cell) in self.columns[neighbours].iter().enumerate() {
            position[*cell] = place as f64;
        }
        let links = if forward { &self.before } else { &self.behind };
        let mut keyed: Vec<(f64, usize)> = self.columns[column]
            .iter()
            .enumerate()
            .map(|(place, cell)| {
                let links = &links[*cell];
                // Rows of one neighbour are told apart by a part of a place.
                let at = |link: &Link| position[link.cell] + link.there / 1e6;
                let mean = links.iter().map(at).sum::<f64>() / links.len().max(1) as f64;
                let key = if links.is_empty() { place as f64 } else { mean };
                (key, *cell)
            })
            .collect();
        keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.columns[column] = keyed.into_iter().map(|(_, cell)| cell).collect();
    }

    fn crossings(&self) -> usize {
        let mut position = vec![0_usize; self.cells.len()];
        for column in &self.columns {
            for (place, cell) in column.iter().enumerate() {
                position[*cell] = place;
            }
        }
        let mut crossings = 0;
        for column in &self.columns {
            let mut ends: Vec<(usize, f64, usize, f64)> = Vec::new();
            for cell in column {
                for link in &self.behind[*cell] {
                    ends.push((position[*cell], link.here, position[link.cell], link.there));
                }
            }
            for (number, a) in ends.iter().enumerate() {
                let crosses = |b: &&(usize, f64, usize, f64)| {
                    let left = a.0.cmp(&b.0).then(a.1.total_cmp(&b.1));
                    let right = a.2.cmp(&b.2).then(a.3.total_cmp(&b.3));
                    left != right && left.is_ne() && right.is_ne()
                };
                crossings += ends[..number].iter().filter(crosses).count();
            }
        }
        crossings
    }

    fn place(self, shapes: &[Shape], lines: &[Line]) -> Layout {
        let tops = self.tops();
        let mut lefts = Vec::with_capacity(self.columns.len());
        let mut widths = Vec::with_capacity(self.columns.len());
        let mut x = 0.0;
        for column in &self.columns {
            let real = column.iter().filter(|cell| **cell < self.count);
            let width = real.map(|cell| shapes[*cell].width).fold(0.0, f64::max);
            lefts.push(x);
            widths.push(width);
            x += width + COLUMN_GAP;
        }
        let first = tops.iter().copied().fold(f64::INFINITY, f64::min);
        let first = if first.is_finite() { first } else { 0.0 };
        let place = |cell: usize| {
            let rank = self.cells[cell].rank;
            // What comes from outside stands at the right of its column, near its users.
            let free = match self.before[cell].is_empty() && cell < self.count {
                true => widths[rank] - shapes[cell].width,
                false => 0.0,
            };
            (lefts[rank] + free, (tops[cell] - first).round())
        };
        let bends = self.passes.iter().map(|cells| {
            let points = cells.iter().flat_map(|cell| {
                let (x, y) = place(*cell);
                [(x, y), (x + widths[self.cells[*cell].rank], y)]
            });
            points.collect()
        });
        let bottoms = self.cells.iter().enumerate();
        let height = bottoms
            .map(|(number, cell)| tops[number] - first + cell.height)
            .fold(0.0, f64::max);
        Layout {
            places: (0..self.count).map(place).collect(),
            bends: bends.take(lines.len()).collect(),
            width: (x - COLUMN_GAP).max(0.0),
            height: height.ceil(),
        }
    }

    /// Returns how far down each cell is.
    fn tops(&self) -> Vec<f64> {
        let mut tops = vec![0.0; self.cells.len()];
        for column in &self.columns {
            let offsets = self.offsets(column);
            for (cell, offset) in column.iter().zip(offsets) {
                tops[*cell] = offset;
            }
        }
        let count = self.columns.len();
        for round in 0..8 {
            for step in 0..count {
                let column = match round % 2 {
                    0 => step,
                    _ => count - 1 - step,
                };
                let sides: &[&Vec<Vec<Link>>] = match round {
                    0 | 2 => &[&self.before],
                    1 | 3 => &[&self.behind],
                    _ => &[&self.before, &self.behind],
                };
                self.settle(column, sides, &mut tops);
            }
        }
        tops
    }

    /// Returns the tops of a column whose cells stand as close as they may.
    fn offsets(&self, column: &[usize]) -> Vec<f64> {
        let mut at = 0.0;
        let mut offsets = Vec::with_capacity(column.len());
        for (place, cell) in column.iter().enumerate() {
            if let Some(above) = place.checked_sub(1).map(|place| &self.cells[column[place]]) {
                at += match above.is_lane || self.cells[*cell].is_lane {
                    true => LANE_GAP,
                    false => GAP,
                };
            }
            offsets.push(at);
            at += self.cells[*cell].height;
        }
        offsets
    }

    /// Moves the cells of a column as near to their neighbours as their order allows: the least squares.
    fn settle(&self, column: usize, sides: &[&Vec<Vec<Link>>], tops: &mut [f64]) {
        let cells = &self.columns[column];
        let offsets = self.offsets(cells);
        // Blocks of cells that touch: sum of wishes, count.
        let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
        for (cell, offset) in cells.iter().zip(&offsets) {
            let mut wish = (0.0, 0.0);
            for link in sides.iter().flat_map(|side| &side[*cell]) {
                // A lane that is straight is worth more than a shape in the middle.
                let weight = match self.cells[link.cell].is_lane || self.cells[*cell].is_lane {
                    true => 2.0,
                    false => 1.0,
                };
                wish.0 += weight * (tops[link.cell] + link.there - link.here);
                wish.1 += weight;
            }
            let wish = match wish.1 > 0.0 {
                true => wish.0 / wish.1,
                false => tops[*cell],
            };
            blocks.push((wish - offset, 1.0, 1));
            while let [.., a, b] = blocks.as_slice()
                && a.0 / a.1 > b.0 / b.1
            {
                let joined = (a.0 + b.0, a.1 + b.1, a.2 + b.2);
                blocks.truncate(blocks.len() - 2);
                blocks.push(joined);
            }
        }
        let wishes = blocks
            .iter()
            .flat_map(|block| std::iter::repeat_n(block.0 / block.1, block.2));
        for ((cell, offset), wish) in cells.iter().zip(&offsets).zip(wishes) {
            tops[*cell] = offset + wish;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(height: f64) -> Shape {
        Shape {
            width: 100.0,
            height,
            out: height / 2.0,
        }
    }

    fn line(from: usize, to: usize) -> Line {
        Line { from, to, at: 10.0 }
    }

    #[test]
    fn columns_follow_what_needs_what() {
        assert_eq!(
            ranks(4, &[line(0, 1), line(1, 2), line(3, 2)]),
            [0, 1, 2, 1]
        );
        assert_eq!(ranks(2, &[line(0, 1), line(1, 0)]), [0, 1]);
        assert_eq!(ranks(0, &[]), [0; 0]);
    }

    #[test]
    fn shapes_of_a_column_do_not_overlap() {
        let shapes: Vec<Shape> = (1..30).map(|number| shape(f64::from(number))).collect();
        let lines: Vec<Line> = (1..29).map(|number| line(number % 5, number)).collect();
        let layout = layout(&shapes, &lines);
        for (a, place) in layout.places.iter().enumerate() {
            for (b, other) in layout.places.iter().enumerate().skip(a + 1) {
                let apart = place.0 + shapes[a].width <= other.0
                    || other.0 + shapes[b].width <= place.0
                    || place.1 + shapes[a].height <= other.1
                    || other.1 + shapes[b].height <= place.1;
                assert!(apart, "{a} and {b}: {place:?} {other:?}");
            }
        }
    }

    #[test]
    fn edges_of_a_simple_chain_are_straight() {
        let shapes = vec![shape(40.0), shape(80.0), shape(20.0)];
        let mut lines = vec![line(0, 1), line(1, 2)];
        lines[0].at = 30.0;
        let layout = layout(&shapes, &lines);
        let (a, b) = (layout.places[0].1 + 20.0, layout.places[1].1 + 30.0);
        assert!((a - b).abs() <= 1.0, "{layout:?}");
    }
}
