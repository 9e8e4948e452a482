// When work is done: as late as somebody waits for it, and then in one of several orders, so that who relies on an
// order that nobody promised sees another one sooner or later.
#include "work.hpp"

#include <algorithm>
#include <set>

static bool is_ready(const Task& task) {
    return std::all_of(task.after.begin(), task.after.end(), [](const TaskPtr& other) { return other->done; });
}

TaskPtr Queue::add(uint64_t lane, Action action, std::vector<TaskPtr> after) {
    const auto over = [](const TaskPtr& other) { return !other || other->done; };
    after.erase(std::remove_if(after.begin(), after.end(), over), after.end());
    auto task = std::make_shared<Task>();
    task->action = std::move(action);
    task->after = std::move(after);
    task->lane = lane;
    task->number = asked++;
    lanes[lane].push_back(task);
    return task;
}

void Queue::run(Task& task) {
    if (task.action) (*task.action)();
    task.end = std::chrono::steady_clock::now();
    task.done = true;
    task.action.reset();
    task.after.clear();
}

void Queue::finish(const TaskPtr& target) {
    if (!target || target->done) return;
    // Orders are drawn, not taken in turns: turns may fall in step with what is repeated.
    random = random * 1664525 + 1013904223;
    switch (random >> 30) {
        case 0: return finish_needed(target);
        case 1: return finish_by_lane(target, false, SIZE_MAX);
        case 2: return finish_by_lane(target, true, SIZE_MAX);
        default: return finish_by_lane(target, true, 1);
    }
}

void Queue::finish_all() {
    std::vector<TaskPtr> all;
    for (auto& [_, lane] : lanes) all.insert(all.end(), lane.begin(), lane.end());
    finish(add(0, nullptr, std::move(all)));
}

// Nothing but what the target needs.
void Queue::finish_needed(const TaskPtr& target) {
    std::vector<TaskPtr> needed{target};
    std::set<Task*> seen{target.get()};
    for (size_t i = 0; i < needed.size(); i++) {
        const auto after = needed[i]->after;
        for (const TaskPtr& other : after)
            if (!other->done && seen.insert(other.get()).second) needed.push_back(other);
    }
    std::sort(needed.begin(), needed.end(), [](auto& a, auto& b) { return a->number < b->number; });
    for (const TaskPtr& task : needed) run(*task);
}

// Goes over all lanes, and does as much of each as can be done, up to so many tasks.
void Queue::finish_by_lane(const TaskPtr& target, bool newest_first, size_t turn) {
    const auto go = [&](Lane& lane) {
        for (size_t tasks = 0; tasks < turn && !lane.empty();) {
            const TaskPtr first = lane.front();
            if (!first->done) {
                if (!is_ready(*first)) return;
                run(*first);
                tasks++;
            }
            lane.pop_front();
        }
    };
    while (!target->done) {
        if (newest_first)
            for (auto lane = lanes.rbegin(); lane != lanes.rend(); lane++) go(lane->second);
        else
            for (auto& [_, lane] : lanes) go(lane);
    }
}

void Queue::clear() {
    // One after the other: a chain that is dropped at its end is dropped recursively.
    for (auto& [_, lane] : lanes)
        for (const TaskPtr& task : lane) task->after.clear();
    lanes.clear();
}
