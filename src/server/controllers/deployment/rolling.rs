//! Pure: how large each ReplicaSet should be now, in a rolling update and when scaling.

use std::cmp::Reverse;

use super::{DESIRED, MAX, Missing, Rollout, by_size_newest_first, max_surge};

impl Rollout<'_> {
    pub(super) fn roll(&mut self) {
        self.sync_revisions(Missing::Create);
        let Some(new) = self.new else { return };
        self.sets[new].size = self.new_size(self.sets[new].replicas);
        if self.sets[new].size == self.sets[new].replicas {
            self.shrink_old(new);
        }
        self.clean_up_if_complete();
    }

    /// The size the new set may have beside what all sets have now.
    pub(super) fn new_size(&self, current: i64) -> i64 {
        if self.is_recreate() || current >= self.replicas {
            return self.replicas;
        }
        let total: i64 = self.sets.iter().map(|set| set.replicas).sum();
        let room = self.replicas + self.surge - total;
        if room <= 0 { current } else { current + room.min(self.replicas - current) }
    }

    /// Unhealthy pods of old sets go first, then healthy ones as far as enough stay available.
    fn shrink_old(&mut self, new: usize) {
        let total: i64 = self.sets.iter().map(|set| set.replicas).sum();
        let min_available = self.replicas - self.unavailable;
        let new_unavailable = self.sets[new].replicas - self.sets[new].available();
        let mut spare = total - min_available - new_unavailable;
        if spare <= 0 {
            return;
        }
        for (_, set) in self.sets.iter_mut().enumerate().filter(|(i, _)| *i != new) {
            let unhealthy = set.size - set.available();
            if set.size == 0 || unhealthy <= 0 || spare <= 0 {
                continue;
            }
            let down = spare.min(unhealthy);
            set.size -= down;
            spare -= down;
        }
        let available: i64 = self.sets.iter().map(|set| set.available()).sum();
        let mut spare = available - min_available;
        for (_, set) in self.sets.iter_mut().enumerate().filter(|(i, _)| *i != new) {
            if set.size > 0 && spare > 0 {
                let down = set.size.min(spare);
                set.size -= down;
                spare -= down;
            }
        }
    }

    /// Sizes for a changed number of replicas, kept in proportion while a rollout is under way.
    pub(super) fn scale(&mut self) {
        let active: Vec<usize> = (0..self.sets.len()).filter(|i| self.sets[*i].replicas > 0).collect();
        let one = match active.as_slice() {
            [] => self.new.or_else(|| self.sets.len().checked_sub(1)),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(one) = one {
            self.sets[one].size = self.replicas;
            self.mark(one);
            return;
        }
        if active.is_empty() {
            return;
        }
        if self.is_saturated() {
            for i in active.into_iter().filter(|i| Some(*i) != self.new) {
                self.sets[i].size = 0;
            }
            return;
        }
        if self.is_recreate() {
            // Only an adopted set is active beside the others. Upstream stops here for ever; we go on to recreate.
            active.into_iter().for_each(|i| self.mark(i));
        } else {
            self.scale_in_proportion(active);
        }
    }

    /// The new set alone serves everything already.
    fn is_saturated(&self) -> bool {
        let Some(new) = self.new.map(|i| &self.sets[i]) else { return false };
        let desired = new.annotation(DESIRED).parse() == Ok(self.replicas);
        new.replicas == self.replicas && desired && new.available() == self.replicas
    }

    fn scale_in_proportion(&mut self, mut active: Vec<usize>) {
        let total: i64 = active.iter().map(|i| self.sets[*i].replicas).sum();
        let allowed = if self.replicas > 0 { self.replicas + self.surge } else { 0 };
        let to_add = allowed - total;
        if to_add >= 0 {
            active.sort_by_key(|i| by_size_newest_first(&self.sets[*i]));
        } else {
            active.sort_by_key(|i| (Reverse(self.sets[*i].replicas), self.sets[*i].created));
        }
        let mut added = 0;
        for i in &active {
            let share = self.share(*i, to_add, added);
            self.sets[*i].size = self.sets[*i].replicas + share;
            added += share;
        }
        if let Some(first) = active.first() {
            let set = &mut self.sets[*first];
            set.size = (set.size + to_add - added).max(0);
        }
        for i in active {
            self.mark(i);
        }
    }

    fn share(&self, i: usize, to_add: i64, added: i64) -> i64 {
        let left = to_add - added;
        let set = &self.sets[i];
        if set.replicas == 0 || left == 0 {
            return 0;
        }
        let fraction = self.fraction(i);
        if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    fn fraction(&self, i: usize) -> i64 {
        let set = &self.sets[i];
        if self.replicas == 0 {
            return -set.replicas;
        }
        let most = self.replicas + max_surge(&self.deployment, self.replicas);
        let before = set.annotation(MAX).parse().ok().filter(|n| *n > 0);
        let before = before.unwrap_or_else(|| self.deployment.i64_at(&["status", "replicas"]).unwrap_or(0));
        if before == 0 {
            return 0;
        }
        (set.replicas as f64 * most as f64 / before as f64).round() as i64 - set.replicas
    }

    /// Remembers on the set what it was sized for.
    fn mark(&mut self, i: usize) {
        let (desired, max) = (self.replicas.to_string(), (self.replicas + self.surge).to_string());
        self.sets[i].annotations.extend([(DESIRED, desired), (MAX, max)]);
    }
}
