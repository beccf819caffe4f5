/* Where things lie in V8's objects and frames, from the v8dbg_* constants that every node exports for post-mortem
 * debuggers. Nothing is tabulated by version: a constant that is missing makes the layout unknown, and JavaScript frames
 * are left out. What no constant tells (where a BytecodeArray has its positions) is inferred from one that is there, and
 * held, like all the rest, against V8's own stack trace before it is used (V8Check.swift).
 *
 * Runs once, on the thread that starts the agent, since it asks the loader. Refuses nothing to later callers: the
 * layout is read-only from then on.
 */
#include "internal.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>

LAG_SMALL_CODE_BEGIN

static struct lag_v8_layout layout;
static bool is_known;

/* The constants: where each goes, whether it must be there, and its names, newest last. Newer V8 spells the types of fields
 * differently. */
#define SHARED_NAME "class_SharedFunctionInfo__name_or_scope_info__"
#define CONSTANTS(NEEDED, WANTED) \
    NEEDED(fp_context, "off_fp_context") \
    NEEDED(fp_function, "off_fp_function") \
    NEEDED(fp_bytecode_array, "off_fp_bytecode_array") \
    NEEDED(fp_bytecode_offset, "off_fp_bytecode_offset") \
    NEEDED(fp_args, "off_fp_args") \
    NEEDED(frame_entry, "frametype_EntryFrame") \
    NEEDED(frame_construct_entry, "frametype_ConstructEntryFrame") \
    NEEDED(frame_exit, "frametype_ExitFrame") \
    NEEDED(frame_builtin_exit, "frametype_BuiltinExitFrame") \
    WANTED(frame_api_callback_exit, "frametype_ApiCallbackExitFrame") \
    WANTED(frame_api_accessor_exit, "frametype_ApiAccessorExitFrame") \
    NEEDED(frame_last, "frametype_NativeFrame") \
    NEEDED(tagged_size, "TaggedSize") \
    NEEDED(smi_shift, "SmiShiftSize") \
    NEEDED(tag, "HeapObjectTag") \
    NEEDED(map_instance_type, "class_Map__instance_type__uint16_t") \
    NEEDED(function_shared, "class_JSFunction__shared__SharedFunctionInfo\0" \
                            "class_JSFunction__shared__Tagged_SharedFunctionInfo_") \
    NEEDED(shared_name, SHARED_NAME "Object\0" \
                        SHARED_NAME "Tagged_Object_\0" \
                        SHARED_NAME "Tagged_NameOrScopeInfoT_") \
    NEEDED(shared_script, "class_SharedFunctionInfo__script_or_debug_info__HeapObject\0" \
                          "class_SharedFunctionInfo__script__Tagged_HeapObject_\0" \
                          "class_SharedFunctionInfo__script__HeapObject") \
    NEEDED(script_name, "class_Script__name__Object\0class_Script__name__Tagged_Object_") \
    NEEDED(script_source, "class_Script__source__Object\0class_Script__source__Tagged_Object_") \
    NEEDED(bytecode_data, "class_BytecodeArray__data__uintptr_t") \
    WANTED(bytecode_wrapper, "class_BytecodeArray__wrapper__Tagged_BytecodeWrapper_") \
    NEEDED(fixed_array_length, "class_FixedArrayBase__length__SMI") \
    NEEDED(byte_array_data, "class_FixedArray__data__uintptr_t") \
    NEEDED(scope_locals, "scopeinfo_idx_ncontextlocals") \
    NEEDED(scope_first, "scopeinfo_idx_first_vars") \
    NEEDED(type_shared, "type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE") \
    NEEDED(type_script, "type_Script__SCRIPT_TYPE") \
    NEEDED(type_bytecode, "type_BytecodeArray__BYTECODE_ARRAY_TYPE") \
    NEEDED(type_scope_info, "type_ScopeInfo__SCOPE_INFO_TYPE") \
    NEEDED(type_byte_array, "type_ByteArray__BYTE_ARRAY_TYPE") \
    WANTED(type_trusted_byte_array, "type_TrustedByteArray__TRUSTED_BYTE_ARRAY_TYPE") \
    NEEDED(type_code, "type_Code__CODE_TYPE") \
    WANTED(type_code_data_container, "type_CodeDataContainer__CODE_DATA_CONTAINER_TYPE") \
    WANTED(type_interpreter_data, "type_InterpreterData__INTERPRETER_DATA_TYPE") \
    WANTED(type_debug_info, "type_DebugInfo__DEBUG_INFO_TYPE") \
    NEEDED(first_context, "FirstContextType") \
    NEEDED(last_context, "LastContextType") \
    NEEDED(not_string_mask, "IsNotStringMask") \
    NEEDED(representation_mask, "StringRepresentationMask") \
    NEEDED(encoding_mask, "StringEncodingMask") \
    NEEDED(one_byte, "OneByteStringTag") \
    NEEDED(cons, "ConsStringTag") \
    NEEDED(external, "ExternalStringTag") \
    NEEDED(sliced, "SlicedStringTag") \
    NEEDED(thin, "ThinStringTag") \
    NEEDED(string_length, "class_String__length__int32_t") \
    NEEDED(string_chars, "class_SeqOneByteString__chars__char") \
    NEEDED(cons_first, "class_ConsString__first__String\0class_ConsString__first__Tagged_String_") \
    NEEDED(cons_second, "class_ConsString__second__String\0class_ConsString__second__Tagged_String_") \
    NEEDED(sliced_parent, "class_SlicedString__parent__String\0class_SlicedString__parent__Tagged_String_") \
    NEEDED(sliced_offset, "class_SlicedString__offset__SMI") \
    NEEDED(thin_actual, "class_ThinString__actual__String\0class_ThinString__actual__Tagged_String_") \
    NEEDED(external_resource, "class_ExternalString__resource__Object") \
    WANTED(map_bit_field3, "class_Map__bit_field3__int") \
    WANTED(map_inobject_start, "class_Map__inobject_properties_start_or_constructor_function_index__char") \
    WANTED(map_size_in_words, "class_Map__instance_size_in_words__char") \
    WANTED(map_descriptors, "class_Map__instance_descriptors_offset") \
    WANTED(descriptors_header, "class_DescriptorArray__header_size__uintptr_t") \
    WANTED(own_descriptors_mask, "bit_field3_number_of_own_descriptors_mask") \
    WANTED(own_descriptors_shift, "bit_field3_number_of_own_descriptors_shift") \
    WANTED(dictionary_shift, "bit_field3_is_dictionary_map_shift") \
    WANTED(property_index_mask, "prop_index_mask") \
    WANTED(property_index_shift, "prop_index_shift") \
    WANTED(property_location_mask, "prop_location_mask") \
    WANTED(descriptor_size, "prop_desc_size") \
    WANTED(descriptor_details, "prop_desc_details")

/* Two tables without pointers, which would cost the object a relocation each: the rows, and in the same order their names,
 * each with a NUL behind it and an empty one behind the last. */
#define ROW_NEEDED(field, names) {offsetof(struct lag_v8_layout, field), 1},
#define ROW_WANTED(field, names) {offsetof(struct lag_v8_layout, field), 0},
#define NAMES_OF(field, names) names "\0\0"
static const struct {
    uint16_t at, is_needed;
} rows[] = {CONSTANTS(ROW_NEEDED, ROW_WANTED)};
static const char names_of_rows[] = CONSTANTS(NAMES_OF, NAMES_OF);

/* Reads one row; `names` ends up behind its last name. */
static bool read_constant(size_t row, const char **names, struct lag_v8_layout *into) {
    bool is_found = false;
    const char *name = *names;
    for (; *name != 0; name += strlen(name) + 1) {
        char full[128] = "v8dbg_";
        size_t length = strlen(name);
        if (is_found || length + 7 > sizeof full) continue;
        memcpy(full + 6, name, length + 1);
        const int32_t *found = dlsym(RTLD_DEFAULT, full);
        if (found == NULL) continue;
        memcpy((char *)into + rows[row].at, found, sizeof *found);
        is_found = true;
    }
    *names = name + 1;
    return is_found;
}

static bool is_frame_slot(int32_t offset) { return offset < 0 && offset >= -256 && offset % 8 == 0; }

static bool read_all(struct lag_v8_layout *found) {
    const char *names = names_of_rows;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (!read_constant(i, &names, found) && rows[i].is_needed) return false;
    /* Compressed pointers and 31-bit integers are another world (Electron, not node). */
    if (found->tagged_size != 8 || found->smi_shift != 31 || found->tag != 1) return false;
    /* Slots of one frame: anything else is no frame that this code was written for. */
    if (!is_frame_slot(found->fp_context) || !is_frame_slot(found->fp_function) ||
        !is_frame_slot(found->fp_bytecode_array) || !is_frame_slot(found->fp_bytecode_offset) || found->fp_args < 0 ||
        found->fp_args > 256)
        return false;
    /* The table of positions moved up when the array got a wrapper for the sandbox. */
    found->bytecode_positions = found->bytecode_wrapper != 0 ? found->bytecode_wrapper + 8 : 32;
    found->has_properties = found->own_descriptors_mask != 0 && found->property_index_mask != 0 &&
                            found->descriptor_size == 3 && found->descriptor_details == 1 && found->map_descriptors > 0;
    return true;
}

/* The executable segment that holds an address, and its file. */
struct text_search {
    uint64_t address, low, high, bias;
    char path[256];
};

static struct lag_uv_module uv_module;
static char uv_path[256];

static int find_text(struct dl_phdr_info *info, size_t size, void *raw) {
    (void)size;
    struct text_search *search = raw;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type != PT_LOAD || (segment->p_flags & PF_X) == 0) continue;
        uint64_t low = info->dlpi_addr + segment->p_vaddr, high = low + segment->p_memsz;
        if (search->address < low || search->address >= high) continue;
        search->low = low;
        search->high = high;
        search->bias = info->dlpi_addr;
        /* The executable itself has no name here. */
        const char *path = info->dlpi_name != NULL && info->dlpi_name[0] != 0 ? info->dlpi_name : "/proc/self/exe";
        size_t length = strlen(path);
        if (length < sizeof search->path) memcpy(search->path, path, length + 1);
        return 1;
    }
    return 0;
}

static void find_uv(void) {
    uint64_t queue_work = (uint64_t)dlsym(RTLD_DEFAULT, "uv_queue_work");
    struct text_search search = {.address = queue_work};
    uv_module.queue_work = 0;
    if (queue_work == 0) return;
    lag_scan_lock();
    (void)dl_iterate_phdr(find_text, &search);
    lag_scan_unlock();
    if (search.high == 0) return;
    memcpy(uv_path, search.path, sizeof uv_path);
    uv_module.bias = search.bias;
    uv_module.queue_work = queue_work;
}

const struct lag_uv_module *lag_v8_uv_module(void) { return &uv_module; }
int lag_v8_uv_file(void) { return uv_path[0] != 0 ? lag_file_open(uv_path) : -ENOENT; }

void lag_v8_layout_resolve(uint64_t address_in_v8) {
    is_known = false;
    find_uv();
    struct lag_v8_layout found;
    memset(&found, 0, sizeof found);
    if (!read_all(&found)) return;
    struct text_search search = {.address = address_in_v8};
    lag_scan_lock();
    (void)dl_iterate_phdr(find_text, &search);
    lag_scan_unlock();
    found.text_low = search.low;
    found.text_high = search.high;
    if (search.high == 0) return;
    layout = found;
    is_known = true;
}

const struct lag_v8_layout *lag_v8_layout(void) { return is_known ? &layout : NULL; }

const char *lag_v8_node_version(void) {
    /* node::per_process::metadata begins with the versions, the first of them node's own: a string, whose first word points
     * at its characters. Its length follows; with libstdc++'s older strings, which some builds have, it lies three words
     * ahead of the characters. What does not look like a version is not taken for one. */
    const uint64_t *metadata = dlsym(RTLD_DEFAULT, "_ZN4node11per_process8metadataE");
    static char version[24];
    uint64_t string[2];
    if (metadata == NULL || lag_safe_read((uint64_t)metadata, string, sizeof string) != sizeof string) return NULL;
    uint64_t length = string[1], dots = 0;
    if (length >= sizeof version && lag_safe_read(string[0] - 24, &length, 8) != 8) return NULL;
    if (length < 5 || length >= sizeof version) return NULL;
    if (lag_safe_read(string[0], version, length + 1) != length + 1 || version[length] != 0) return NULL;
    for (uint64_t i = 0; i < length; i++) {
        if (version[i] == '.') dots += 1;
        else if (version[i] < '0' || version[i] > '9') return NULL;
    }
    return dots == 2 ? version : NULL;
}

LAG_SMALL_CODE_END
