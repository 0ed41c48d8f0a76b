//! All channels of a connection by number, with generations against stale handles.

use super::channel::{Channel, ChannelId};

/// The channels. A number is given again as soon as its channel is removed, under a new generation.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    channel: Option<Channel>,
}

impl Table {
    /// Puts a new channel in, made for the id it gets.
    pub(super) fn insert(&mut self, make: impl FnOnce(ChannelId) -> Channel) -> ChannelId {
        let number = self.vacant.pop().unwrap_or_else(|| self.grow());
        let slot = &mut self.slots[number as usize];
        let id = ChannelId { number, generation: slot.generation };
        slot.channel = Some(make(id));
        id
    }

    fn grow(&mut self) -> u32 {
        let number = u32::try_from(self.slots.len()).expect("2^32 channels do not fit in memory");
        self.slots.push(Slot::default());
        number
    }

    /// Takes a channel out; its id reaches nothing from now on.
    pub(super) fn remove(&mut self, id: ChannelId) {
        let Some(slot) = self.slots.get_mut(id.number as usize) else { return };
        if slot.generation == id.generation && slot.channel.take().is_some() {
            slot.generation = slot.generation.wrapping_add(1);
            self.vacant.push(id.number);
        }
    }

    /// The channel of this handle, unless it has ended.
    pub(super) fn get(&self, id: ChannelId) -> Option<&Channel> {
        self.slots.get(id.number as usize)?.channel.as_ref().filter(|channel| channel.id() == id)
    }

    /// The channel of this handle, unless it has ended.
    pub(super) fn get_mut(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.slots.get_mut(id.number as usize)?.channel.as_mut().filter(|channel| channel.id() == id)
    }

    /// The channel that has this number now.
    pub(super) fn numbered(&mut self, number: u32) -> Option<&mut Channel> {
        self.slots.get_mut(usize::try_from(number).ok()?)?.channel.as_mut()
    }

    /// Whether the peer, when it writes this number now, can only mean a channel that has ended: none has the number, or
    /// a successor whose open the peer has not answered yet.
    pub(super) fn is_stale(&self, number: u32) -> bool {
        self.slots.get(number as usize).is_some_and(|slot| match &slot.channel {
            None => true,
            Some(channel) => slot.generation > 0 && channel.is_opening(),
        })
    }

    /// How many channels have a number.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }
}
