//! Fair orders of what several nodes have announced, none of which is trusted.

use std::collections::HashMap;
use std::hash::Hash;

/// `items` in an order in which nodes take turns with what each of them announces alone: its second one comes after the
/// first ones of all others, and after whatever several of them announce. Within a turn the order stays as it is.
pub fn in_turn<T, N: Eq + Hash>(items: impl IntoIterator<Item = T>, alone: impl Fn(&T) -> Option<N>) -> Vec<T> {
    let mut turns: HashMap<N, u32> = HashMap::new();
    let mut turn_of = |item: &T| {
        let turns = turns.entry(alone(item)?).or_default();
        *turns += 1;
        Some(*turns - 1)
    };
    let mut items: Vec<(u32, T)> = items.into_iter().map(|item| (turn_of(&item).unwrap_or(0), item)).collect();
    items.sort_by_key(|(turn, _)| *turn);
    items.into_iter().map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_announces_much_alone_waits_for_the_others() {
        let items = [("a", Some(1)), ("b", Some(1)), ("c", Some(1)), ("d", Some(2)), ("e", None), ("f", Some(2))];
        let order: String = in_turn(items, |(_, node)| *node).into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, "adebfc");
    }
}
