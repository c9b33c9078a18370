"""What the service promises, and the tests that hold it: the table in docs/reliability.md; a line for each promise.

A test is `FILE::NAME`, below tests/. `tests/test_bad_inputs.py` sees that it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PROMISES: Mapping[str, Sequence[str]] = {
    # --- requests
    "Nothing that a client sends is a 5xx but 503 and 504.": (
        "test_contract.py::test_every_operation_answers_as_documented",
        "test_bad_inputs.py::test_every_bad_input_gets_its_status",
        "test_never_500.py::test_any_message_of_tensors_is_answered_or_refused",
        "test_never_500.py::test_any_binary_tensor_is_answered_or_refused",
        "test_never_500.py::test_any_fields_are_answered_or_refused",
        "test_never_500.py::test_a_mutated_picture_is_answered_or_refused",
        "test_never_500.py::test_any_bytes_of_any_type_are_answered_or_refused",
    ),
    "Values that only the graph's own run can refuse, such as an index beyond its table, are 400 and named, and harm no other request.": (
        "api/test_open_inference.py::test_values_that_the_graph_cannot_compute_with_are_400_and_named",
        "api/test_open_inference.py::test_a_caller_whose_run_fails_does_not_harm_the_others",
    ),
    "Every answer has a documented status and content type, and fits its schema.": (
        "test_contract.py::test_every_operation_answers_as_documented",
    ),
    "An accepted request is answered: by its graph, or when its deadline passes.": (
        "runtime/test_batcher.py::test_closing_finishes_what_was_accepted_and_refuses_the_rest",
        "runtime/test_batcher.py::test_work_whose_deadline_passed_in_the_queue_is_not_run",
        "api/test_edge.py::test_a_deadline_that_passes_is_504",
    ),
    "A request that fails, or whose caller leaves, does not harm those beside it.": (
        "runtime/test_batcher.py::test_one_bad_row_fails_alone",
        "runtime/test_batcher.py::test_a_caller_cancelled_mid_run_does_not_disturb_its_batch",
        "api/test_short_way.py::test_a_crash_is_a_500_and_the_others_are_answered",
    ),
    "Errors are short, however long what was wrong, and show no path of the server.": (
        "api/test_error_size.py::test_of_many_wrong_values_twenty_are_listed_and_a_thousand_counted",
        "api/test_error_size.py::test_a_long_path_is_not_sent_back",
        "api/test_edge.py::test_a_crash_leaves_by_the_same_door",
    ),
    "Bodies, pictures, series and texts are bounded, after decompression, too.": (
        "api/test_bodies.py::test_the_limit_holds_after_decompression",
        "api/test_bodies.py::test_the_limit_holds_without_a_content_length",
        "media/test_images.py::test_an_image_over_the_limit_is_refused_before_it_is_decoded",
    ),
    "Slow and silent clients are cut off.": (
        "test_server.py::test_headers_that_arrive_too_slowly_are_408",
        "test_server.py::test_a_body_that_arrives_too_slowly_is_408",
        "test_server.py::test_a_connection_that_says_nothing_is_closed",
    ),
    # --- state tokens
    "A state token that was changed, cut or forged is refused, or harmless.": (
        "test_state.py::test_any_changed_character_is_noticed",
        "test_never_500.py::test_a_mutated_state_is_refused",
        "test_never_500.py::test_a_forged_state_of_a_series_is_answered_or_refused",
        "test_never_500.py::test_a_forged_state_of_a_text_is_answered_or_refused",
    ),
    # --- overload
    "Work and memory of reading a request stay in proportion to what is answered: values, fields, files, rows and bytes are counted before anything is built.": (
        "api/test_hostile_bodies.py::test_a_hostile_body_is_refused_in_a_few_words",
        "api/test_hostile_bodies.py::test_hostile_tensors_are_refused_in_a_few_words",
        "api/test_hostile_bodies.py::test_values_and_fields_are_counted_as_they_are",
        "api/test_hostile_bodies.py::test_bodies_beyond_what_may_be_in_flight_are_503",
    ),
    "Under overload a request that cannot be answered in time is refused at once, with a time to wait.": (
        "runtime/test_overload.py::test_a_request_that_cannot_be_done_in_time_is_refused_at_once",
        "runtime/test_overload.py::test_bytes_bound_a_queue_too",
    ),
    "A run ends at the deadline of its last caller, and the event loop is never held by one.": (
        "runtime/test_overload.py::test_a_run_ends_at_the_deadline_of_its_last_caller",
        "runtime/test_overload.py::test_a_run_whose_callers_have_all_left_is_stopped",
        "runtime/test_overload.py::test_a_run_that_takes_too_long_in_the_event_loops_thread_goes_on_in_the_other",
    ),
    "Loading a version has a time limit, and what was checked is what is served.": (
        "test_loading_server.py::test_what_never_ends_is_listed_and_the_rest_is_served",
        "registry/test_files.py::test_lone_runs_have_the_weights_of_all_others",
        "registry/test_files.py::test_files_that_lie_elsewhere_are_refused",
    ),
    "A token that the server issued is always taken back.": (
        "test_forged_tokens.py::test_forged_memories_of_the_real_detector",
        "test_forged_tokens.py::test_forged_memories_of_the_real_language_model",
        "test_forged_tokens.py::test_the_largest_state_fits_in_a_token",
    ),
    "Keys are stored as hashes, re-read without a restart, and limited to their models.": (
        "test_keys.py::test_a_key_is_256_random_bits_of_which_the_file_has_the_hash_alone",
        "api/test_access.py::test_every_worker_reads_the_keys_again_while_it_serves",
        "api/test_access.py::test_a_key_for_some_models_is_403_on_the_others_by_every_way",
    ),
    "Connections are bounded.": (
        "test_connections.py::test_the_longest_idle_make_room_for_new_connections",
        "test_connections.py::test_where_none_is_idle_a_new_connection_is_503_until_there_is_room",
    ),
    "A full queue refuses at once, with 503.": (
        "runtime/test_batcher.py::test_a_full_queue_refuses_at_once",
        "api/test_open_inference.py::test_a_full_queue_is_503",
    ),
    "A long request lets short ones pass.": (
        "runtime/test_batcher.py::test_a_long_request_lets_a_short_one_pass_between_its_runs",
    ),
    # --- models
    "A bad model is listed with its reason and never keeps the others from being served.": (
        "registry/test_registry.py::test_a_bad_folder_is_explained_and_the_others_are_served",
        "registry/test_unreadable.py::test_what_cannot_be_read_is_listed_with_the_reason",
        "test_never_500.py::test_any_manifest_is_served_or_explained",
    ),
    "A model is replaced under load without a failed request, and every answer is of the version that it names.": (
        "test_swap.py::test_clients_that_never_retry_notice_nothing_but_newer_versions",
        "test_swap.py::test_what_was_begun_is_finished_by_what_began_it",
        "test_swap.py::test_after_a_load_every_connection_has_the_new_version",
    ),
    "A version takes traffic only when its golden samples agree; until then, and if it crashes its loader, what was served before is.": (
        "test_swap.py::test_a_version_that_fails_is_refused_and_the_old_one_serves",
        "test_swap.py::test_a_model_that_ends_its_loader_is_named_and_the_old_one_serves",
        "test_swap.py::test_workers_that_cannot_begin_do_not_take_over",
        "registry/test_renewing.py::test_changed_files_that_fail_leave_the_old_bytes_serving",
    ),
    # --- processes
    "A worker that dies or hangs is replaced, and the others go on.": (
        "test_server.py::test_a_worker_that_dies_is_replaced_and_the_others_go_on",
        "test_server.py::test_a_worker_that_hangs_gets_no_connections_and_is_replaced",
        "test_server.py::test_a_worker_that_dies_again_and_again_is_not_the_end_of_the_service",
        "test_server.py::test_connections_that_a_dead_worker_had_not_taken_are_answered_by_another",
    ),
    "Logs never block or break an answer.": (
        "test_server.py::test_what_becomes_of_the_log_keeps_nobody_waiting",
        "test_log_writer.py::test_a_reader_that_stalls_keeps_nobody_waiting_and_what_does_not_fit_is_counted",
    ),
    "A full temporary folder costs metrics only; a killed server leaves nothing behind for long.": (
        "test_server.py::test_a_full_temporary_folder_costs_metrics_only",
        "test_server.py::test_what_a_killed_server_left_is_removed_by_the_next",
        "test_server.py::test_workers_do_not_outlive_their_supervisor",
    ),
    "On SIGTERM readiness goes first, and no request that was begun is lost.": (
        "test_server.py::test_readiness_goes_first_and_requests_are_taken_for_the_time_of_grace",
        "test_server.py::test_no_request_that_was_begun_is_reset_while_the_server_drains",
    ),
    "Memory that is kept is bounded, and given back when there is nothing to do.": (
        "runtime/test_memory.py::test_what_several_threads_have_freed_is_bounded_and_given_back",
        "runtime/test_memory.py::test_memory_is_given_back_once_after_work",
    ),
    "The server opens no connection to anywhere.": ("test_no_outbound.py::test_the_server_connects_to_nowhere",),
}
