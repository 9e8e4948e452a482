// Work that was asked for. It is done when somebody waits for it, in any order that its dependencies allow.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

// Something to do, once or many times.
using Action = std::shared_ptr<const std::function<void()>>;

struct Task {
    Action action;  // none for a mark in a stream
    std::vector<std::shared_ptr<Task>> after;
    uint64_t lane = 0;
    uint64_t number = 0;  // in the order of asking
    bool done = false;
    std::chrono::steady_clock::time_point end;
};
using TaskPtr = std::shared_ptr<Task>;

class Queue {
  public:
    // Asks for an action after other tasks. Tasks of a lane are kept in the order of asking; which lane it is decides
    // about nothing but preference.
    TaskPtr add(uint64_t lane, Action action, std::vector<TaskPtr> after);
    // Waits for a task; whatever it does not need may be done as well, or not.
    void finish(const TaskPtr& target);
    void finish_all();
    // Forgets what is not done.
    void clear();

  private:
    using Lane = std::deque<TaskPtr>;

    void finish_needed(const TaskPtr& target);
    void finish_by_lane(const TaskPtr& target, bool newest_first, size_t turn);
    void run(Task& task);

    std::map<uint64_t, Lane> lanes;
    uint64_t asked = 0;
    uint32_t random = 1;
};
